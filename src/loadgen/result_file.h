// A load test's result on disk: vLLM's flat names and units with this program's own beside them, and a line
// of JSON for each request. docs/benchmark.md describes both.
#pragma once

#include <boost/json.hpp>
#include <filesystem>
#include <string>

#include "loadgen/load_test.h"

namespace qwen2 {

boost::json::object to_json(const LoadTestOptions& options, const LoadTestResult& result);

// One line a request that ended, by index, in the order of the arrays of to_json().
std::string requests_jsonl(const LoadTestResult& result);

// "F.requests.jsonl" beside "F.json"; "F.STEP.requests.jsonl" where `step` is not empty.
std::filesystem::path requests_path(const std::filesystem::path& output, const std::string& step = {});

// What the files of an interrupted run have kept. Its parameters must be those of `options`; the error names
// the one that is not, or the file and the line.
Result<LoadTestResult> read_earlier(const std::filesystem::path& output, const LoadTestOptions& options);

// `result`, which `file` holds, was measured with the parameters of `options`; the error names the one that
// differs.
Status check_same_parameters(const boost::json::object& result, const LoadTestOptions& options,
                             const std::string& file);

}  // namespace qwen2

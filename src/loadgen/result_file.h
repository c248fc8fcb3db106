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

// What a test measures: its own options, and the service as its result file names it.
struct Measured {
  LoadTestOptions options;
  std::string model;           // "model_id"
  std::string backend;         // "backend"
  boost::json::value service;  // "service": the flags of one that the test started; else null
};

// What the files of an interrupted run have kept. It must have measured the same; the error names what
// differs, or the file and the line.
Result<LoadTestResult> read_earlier(const std::filesystem::path& output, const Measured& measured);

// `result`, which `file` holds, measured the same; the error names what differs.
Status check_same(const boost::json::object& result, const Measured& measured, const std::string& file);

}  // namespace qwen2

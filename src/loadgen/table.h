// A load test's result for the terminal.
#pragma once

#include <string>

#include "loadgen/load_test.h"
#include "loadgen/search.h"

namespace qwen2 {

std::string format_table(const LoadTestOptions& options, const LoadTestResult& result);

// One line a step of a ladder or a search, and the verdict.
std::string format_table(const SearchResult& result);

}  // namespace qwen2

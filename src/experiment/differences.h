// What two runs of an experiment differ in besides their results.
#pragma once

#include <string>
#include <vector>

#include "experiment/manifest.h"

namespace qwen2 {

struct Named {
  std::string key;  // what --allow takes
  std::string a, b;
};

// Of machine and program: cpu, cores, threads, isa, kernel, gpu, gpu_memory_bytes, driver, cuda, compiler,
// flags. Commit, host, clocks and dates may differ.
std::vector<Named> environment_differences(const boost::json::object& a, const boost::json::object& b);

// "cpu: 'x' and 'y'; cores: 2 and 4"
std::string describe(const std::vector<Named>& differences);

}  // namespace qwen2

// What a result depends on besides the flags that it lists: machine, program, model, command.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"

namespace qwen2 {

// The "environment" of a result file, as docs/experiments.md lists it. `model` is --model's value, empty
// where no model was opened here; what the machine does not say (a GPU that it has not) is null.
boost::json::object describe_environment(const std::string& model, std::optional<uint64_t> seed);

// "fnv1a64:" and 16 hexadecimal digits that tell models apart, in milliseconds: the 64-bit FNV-1a hash over
// name, size and contents of a folder's *.json and *.safetensors files in the order of their names, or over
// size and contents of a GGUF model's files. Of a file above 1 MiB, the first 4 KiB of every MiB and the last 4 KiB
// count. A synthetic model's hash is that of its name and its configuration.
Result<std::string> model_fingerprint(const std::string& model);

}  // namespace qwen2

// Calibration text as token sequences.
#pragma once

#include <filesystem>
#include <vector>

#include "base/error.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace qwen2::quantize {

struct CalibrationLimits {
  int64_t sequences = 256;
  int64_t length = 256;  // tokens of one
};

// A file that ends in ".jsonl" has one conversation a line: an array of {"role", "content"}, or an object
// with such an array as "messages"; each becomes a sequence in the model's own chat format, cut at `length`.
// Any other file is plain text that is cut into pieces of `length`. Of more sequences than wanted, evenly
// spaced ones are taken. Lines that are no conversation are errors that name them.
Result<std::vector<std::vector<TokenId>>> read_calibration(const std::filesystem::path& path,
                                                           const Tokenizer& tokenizer,
                                                           const ChatTemplate& chat,
                                                           const CalibrationLimits& limits);

}  // namespace qwen2::quantize

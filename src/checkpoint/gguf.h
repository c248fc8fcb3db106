// The GGUF container, version 3, little-endian: a header, typed metadata, tensor descriptions, aligned
// tensors. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"

namespace qwen2 {

// The first bytes of a file.
constexpr std::string_view kGgufMagic = "GGUF";

// The format's numbers of metadata types.
enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// ggml's numbers of the tensor types that this program computes with.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
};

// ggml's name of such a type, such as "Q4_K".
std::string_view ggml_type_name(GgmlType type);
// Elements and bytes of a block; a row is a whole number of blocks.
struct GgmlBlock {
  int64_t elements = 0;
  int64_t bytes = 0;
};
GgmlBlock ggml_block(GgmlType type);

// An array, checked but left in the file's bytes.
struct GgufArray {
  GgufValueType element = GgufValueType::kUint8;  // not kArray
  uint64_t size = 0;
  std::span<const std::byte> bytes;

  // The elements when they are strings, else nothing.
  [[nodiscard]] std::optional<std::vector<std::string_view>> strings() const;
  // The elements when they are integers that fit in 64 signed bits, else nothing.
  [[nodiscard]] std::optional<std::vector<int64_t>> integers() const;
};

// Every integer type is widened to 64 bits and every float type to double.
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;

struct GgufTensor {
  GgmlType type = GgmlType::kF32;
  std::array<int64_t, 4> shape{1, 1, 1,
                               1};  // elements, the fastest dimension first: a matrix is [cols, rows]
  uint64_t begin = 0;               // bytes from the start of the file
  uint64_t bytes = 0;
  size_t shard = 0;  // which file of a split model, from 0
};

// Views into the file's bytes, which must outlive it.
struct GgufFile {
  std::map<std::string_view, GgufValue> metadata;
  std::map<std::string, GgufTensor, std::less<>> tensors;
  uint64_t alignment = 32;  // bytes

  // The value of a key, null without it.
  [[nodiscard]] const GgufValue* find(std::string_view key) const;
  // The value of a key of one kind, nothing without it; a value of another kind is an error that names the
  // key. An integer must fit in 64 signed bits; a number must be finite
  // and may be an integer.
  [[nodiscard]] Result<std::optional<int64_t>> integer(std::string_view key) const;
  [[nodiscard]] Result<std::optional<double>> number(std::string_view key) const;
  [[nodiscard]] Result<std::optional<bool>> boolean(std::string_view key) const;
  [[nodiscard]] Result<std::optional<std::string_view>> string(std::string_view key) const;
};

// Parses and checks a whole file: counts and lengths against the bytes that remain, types against the known
// ones, tensors against their shape, the alignment, the file's end and one another. Errors name the key or
// the tensor. Allocates a few times the size of the keys and tensor descriptions, never of what a count
// claims.
Result<GgufFile> parse_gguf(std::span<const std::byte> file);

}  // namespace qwen2

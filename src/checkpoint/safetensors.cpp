#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cstring>
#include <utility>

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit

// Bits of an element; 0 for an unknown type.
uint64_t element_bits(std::string_view dtype) {
  static constexpr auto kBits = std::to_array<std::pair<std::string_view, uint64_t>>({{"F64", 64},
                                                                                      {"F32", 32},
                                                                                      {"F16", 16},
                                                                                      {"BF16", 16},
                                                                                      {"I64", 64},
                                                                                      {"I32", 32},
                                                                                      {"I16", 16},
                                                                                      {"I8", 8},
                                                                                      {"U64", 64},
                                                                                      {"U32", 32},
                                                                                      {"U16", 16},
                                                                                      {"U8", 8},
                                                                                      {"BOOL", 8},
                                                                                      {"F8_E4M3", 8},
                                                                                      {"F8_E5M2", 8},
                                                                                      {"F8_E8M0", 8}});
  for (const auto& [name, bits] : kBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

Result<uint64_t> unsigned_number(const json::value& value, std::string_view what) {
  if (value.is_int64() && value.get_int64() >= 0) return static_cast<uint64_t>(value.get_int64());
  if (value.is_uint64()) return value.get_uint64();
  return fail(ErrorKind::kFormat, "{} must be a non-negative integer", what);
}

Result<SafetensorsEntry> parse_entry(const json::value& value) {
  const json::object* object = value.if_object();
  if (object == nullptr) return fail(ErrorKind::kFormat, "the header entry must be an object");
  SafetensorsEntry entry;
  const json::value* dtype = object->if_contains("dtype");
  if (dtype == nullptr || !dtype->is_string()) return fail(ErrorKind::kFormat, "'dtype' must be a string");
  entry.dtype = std::string_view(dtype->get_string());
  const uint64_t bits = element_bits(entry.dtype);
  if (bits == 0) return fail(ErrorKind::kFormat, "unknown dtype '{}'", entry.dtype.substr(0, 32));

  const json::value* shape = object->if_contains("shape");
  if (shape == nullptr || !shape->is_array()) return fail(ErrorKind::kFormat, "'shape' must be an array");
  uint64_t bytes = bits / 8;
  for (const json::value& item : shape->get_array()) {
    QWEN2_TRY(const uint64_t size, unsigned_number(item, "a dimension of 'shape'"));
    if (size > INT64_MAX || __builtin_mul_overflow(bytes, size, &bytes)) {
      return fail(ErrorKind::kFormat, "'shape' does not fit in 64 bits");
    }
    entry.shape.push_back(static_cast<int64_t>(size));
  }

  const json::value* offsets = object->if_contains("data_offsets");
  if (offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2) {
    return fail(ErrorKind::kFormat, "'data_offsets' must be an array of two numbers");
  }
  QWEN2_TRY(entry.begin, unsigned_number(offsets->get_array()[0], "'data_offsets'[0]"));
  QWEN2_TRY(entry.end, unsigned_number(offsets->get_array()[1], "'data_offsets'[1]"));
  if (entry.begin > entry.end || entry.end - entry.begin != bytes) {
    return fail(ErrorKind::kFormat, "'data_offsets' [{}, {}] do not span the {} bytes of its shape and dtype",
                entry.begin, entry.end, bytes);
  }
  return entry;
}

// Tensors must lie end to end from 0 to the end of the data section.
Status check_coverage(const SafetensorsHeader& header, uint64_t data_bytes) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  order.reserve(header.tensors.size());
  for (const auto& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t position = 0;
  for (const auto* item : order) {
    const auto& [name, entry] = *item;
    if (entry.end > data_bytes) {
      return fail(ErrorKind::kFormat,
                  "tensor '{}' ends at byte {} of a data section of {}: the file is truncated", name,
                  entry.end, data_bytes);
    }
    if (entry.begin < position)
      return fail(ErrorKind::kFormat, "tensor '{}' overlaps the one before it", name);
    if (entry.begin > position) {
      return fail(ErrorKind::kFormat, "{} bytes before tensor '{}' belong to no tensor",
                  entry.begin - position, name);
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    return fail(ErrorKind::kFormat, "{} bytes after the last tensor belong to no tensor",
                data_bytes - position);
  }
  return {};
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof header_bytes) {
    return fail(ErrorKind::kFormat, "{} bytes are too few for a safetensors header", file.size());
  }
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - sizeof header_bytes) {
    return fail(ErrorKind::kFormat, "the header claims {} bytes, the file has {}", header_bytes, file.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof header_bytes, header_bytes);
  json::error_code code;
  json::parse_options options;
  options.max_depth = 8;
  const json::value parsed = json::parse(text, code, {}, options);
  if (code) return fail(ErrorKind::kFormat, "the header is not valid JSON: {}", code.message());
  if (!parsed.is_object()) return fail(ErrorKind::kFormat, "the header must be a JSON object");

  SafetensorsHeader header;
  header.data_start = sizeof header_bytes + header_bytes;
  for (const auto& [key, value] : parsed.get_object()) {
    if (key == "__metadata__") continue;
    auto entry = parse_entry(value);
    if (!entry) return within(fmt::format("tensor '{}'", std::string_view(key)), entry.error());
    header.tensors.emplace(key, std::move(*entry));
  }
  QWEN2_CHECK(check_coverage(header, file.size() - header.data_start));
  return header;
}

}  // namespace qwen2

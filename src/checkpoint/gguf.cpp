#include "checkpoint/gguf.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace qwen2 {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in memory");

constexpr uint32_t kVersion = 3;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 30;

struct TypeRow {
  uint32_t number;
  std::string_view name;
  GgmlBlock block;
};

constexpr auto kTypes = std::to_array<TypeRow>({
    {0, "F32", {1, 4}},
    {1, "F16", {1, 2}},
    {30, "BF16", {1, 2}},
    {2, "Q4_0", {32, 18}},
    {3, "Q4_1", {32, 20}},
    {6, "Q5_0", {32, 22}},
    {7, "Q5_1", {32, 24}},
    {8, "Q8_0", {32, 34}},
    {10, "Q2_K", {256, 84}},
    {11, "Q3_K", {256, 110}},
    {12, "Q4_K", {256, 144}},
    {13, "Q5_K", {256, 176}},
    {14, "Q6_K", {256, 210}},
    {20, "IQ4_NL", {32, 18}},
    {23, "IQ4_XS", {256, 136}},
});

struct OtherType {
  uint32_t number;
  std::string_view name;
};

// Types that ggml writes into files and this program does not compute with.
constexpr auto kUnsupportedTypes = std::to_array<OtherType>({
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
    {39, "MXFP4"},
    {40, "NVFP4"},
    {41, "Q1_0"},
    {42, "Q2_0"},
});

// Q4_0 and IQ4_NL in the order of one processor's kernels; ggml has withdrawn them.
constexpr auto kRetiredTypes = std::to_array<OtherType>({
    {31, "Q4_0_4_4"},
    {32, "Q4_0_4_8"},
    {33, "Q4_0_8_8"},
    {36, "IQ4_NL_4_4"},
    {37, "IQ4_NL_4_8"},
    {38, "IQ4_NL_8_8"},
});

const TypeRow* find_type(uint32_t number) {
  const auto found =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeRow& row) { return row.number == number; });
  return found == kTypes.end() ? nullptr : &*found;
}

// "" for a number that no list has.
std::string_view name_in(std::span<const OtherType> list, uint32_t number) {
  for (const OtherType& type : list) {
    if (type.number == number) return type.name;
  }
  return {};
}

std::unexpected<Error> other_type(uint32_t number) {
  if (const auto name = name_in(kRetiredTypes, number); !name.empty()) {
    return fail(ErrorKind::kUnsupported,
                "type {} ({}) is a repacked one that ggml retired: download the {} file, or quantise again",
                name, number, name.substr(0, name.size() - std::string_view("_4_4").size()));
  }
  const std::string_view name = name_in(kUnsupportedTypes, number);
  if (name.empty()) return fail(ErrorKind::kFormat, "unknown tensor type {}", number);
  std::vector<std::string_view> known;
  known.reserve(kTypes.size());
  for (const TypeRow& row : kTypes) known.push_back(row.name);
  return fail(ErrorKind::kUnsupported,
              "type {} ({}) is not supported: download or quantise the model in one of {}", name, number,
              fmt::join(known, ", "));
}

// Bytes of an element of fixed size; 0 for strings, arrays and unknown types.
uint64_t fixed_bytes(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
    case GgufValueType::kInt8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kUint16:
    case GgufValueType::kInt16:
      return 2;
    case GgufValueType::kUint32:
    case GgufValueType::kInt32:
    case GgufValueType::kFloat32:
      return 4;
    case GgufValueType::kUint64:
    case GgufValueType::kInt64:
    case GgufValueType::kFloat64:
      return 8;
    case GgufValueType::kString:
    case GgufValueType::kArray:
      break;
  }
  return 0;
}

std::string_view shortened(std::string_view name) {
  return name.substr(0, 64);
}

template <class T>
T load(const std::byte* source) {
  T value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

// Walks over the file; nothing is read before its length is held against what remains.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> file) : file_(file) {}

  [[nodiscard]] uint64_t position() const { return position_; }
  [[nodiscard]] uint64_t remaining() const { return file_.size() - position_; }

  Result<std::span<const std::byte>> take(uint64_t bytes, std::string_view what) {
    if (bytes > remaining()) {
      return fail(ErrorKind::kFormat, "{} needs {} bytes, {} remain: the file is truncated or damaged", what,
                  bytes, remaining());
    }
    const auto part = file_.subspan(position_, bytes);
    position_ += bytes;
    return part;
  }

  template <class T>
  Result<T> value(std::string_view what) {
    QWEN2_TRY(const auto bytes, take(sizeof(T), what));
    return load<T>(bytes.data());
  }

  Result<std::string_view> string(std::string_view what) {
    QWEN2_TRY(const uint64_t size, value<uint64_t>(what));
    QWEN2_TRY(const auto bytes, take(size, what));
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

 private:
  std::span<const std::byte> file_;
  uint64_t position_ = 0;
};

Result<GgufArray> read_array(Reader& reader) {
  GgufArray array;
  QWEN2_TRY(const uint32_t element, reader.value<uint32_t>("the array's type"));
  array.element = static_cast<GgufValueType>(element);
  if (array.element == GgufValueType::kArray) {
    return fail(ErrorKind::kUnsupported, "arrays of arrays are not supported");
  }
  QWEN2_TRY(array.size, reader.value<uint64_t>("the array's length"));
  const uint64_t start = reader.position();
  const uint64_t step = fixed_bytes(array.element);
  if (step == 0 && array.element != GgufValueType::kString) {
    return fail(ErrorKind::kFormat, "unknown type {} of an array's elements", element);
  }
  // A string is at least its length.
  const uint64_t least = step == 0 ? sizeof(uint64_t) : step;
  if (array.size > reader.remaining() / least) {
    return fail(ErrorKind::kFormat, "an array claims {} elements, {} bytes remain", array.size,
                reader.remaining());
  }
  Reader elements = reader;
  QWEN2_TRY(array.bytes, reader.take(array.size * least, "an array"));
  if (step != 0) return array;
  for (uint64_t i = 0; i < array.size; ++i) {
    const auto text = elements.string("a string");
    if (!text) return within(fmt::format("element {}", i), text.error());
  }
  reader = elements;
  // Spans the strings' bytes too.
  array.bytes = {array.bytes.data(), static_cast<size_t>(reader.position() - start)};
  return array;
}

Result<GgufValue> read_value(Reader& reader) {
  QWEN2_TRY(const uint32_t type, reader.value<uint32_t>("the value's type"));
  const auto kind = static_cast<GgufValueType>(type);
  if (kind == GgufValueType::kArray) return read_array(reader);
  if (kind == GgufValueType::kString) return reader.string("a string");
  const uint64_t size = fixed_bytes(kind);
  if (size == 0) return fail(ErrorKind::kFormat, "unknown value type {}", type);
  QWEN2_TRY(const auto bytes, reader.take(size, "a value"));
  const std::byte* const data = bytes.data();
  switch (kind) {
    case GgufValueType::kUint8:
      return uint64_t{load<uint8_t>(data)};
    case GgufValueType::kInt8:
      return int64_t{load<int8_t>(data)};
    case GgufValueType::kUint16:
      return uint64_t{load<uint16_t>(data)};
    case GgufValueType::kInt16:
      return int64_t{load<int16_t>(data)};
    case GgufValueType::kUint32:
      return uint64_t{load<uint32_t>(data)};
    case GgufValueType::kInt32:
      return int64_t{load<int32_t>(data)};
    case GgufValueType::kUint64:
      return load<uint64_t>(data);
    case GgufValueType::kInt64:
      return load<int64_t>(data);
    case GgufValueType::kFloat32:
      return double{load<float>(data)};
    case GgufValueType::kFloat64:
      return load<double>(data);
    default:
      break;
  }
  const auto flag = load<uint8_t>(data);
  if (flag > 1) return fail(ErrorKind::kFormat, "a bool must be 0 or 1, it is {}", flag);
  return flag == 1;
}

Status read_metadata(Reader& reader, uint64_t count, GgufFile& file) {
  for (uint64_t i = 0; i < count; ++i) {
    const auto key = reader.string("a metadata key");
    if (!key) return within(fmt::format("metadata entry {}", i), key.error());
    auto value = read_value(reader);
    if (!value) return within(fmt::format("metadata key '{}'", shortened(*key)), value.error());
    if (!file.metadata.emplace(*key, *std::move(value)).second) {
      return fail(ErrorKind::kFormat, "metadata key '{}' occurs twice", shortened(*key));
    }
  }
  QWEN2_TRY(const auto alignment, file.integer("general.alignment"));
  if (!alignment) return {};
  const auto bytes = static_cast<uint64_t>(*alignment);
  if (*alignment < 8 || bytes > kMaxAlignment || !std::has_single_bit(bytes)) {
    return fail(ErrorKind::kFormat, "'general.alignment' must be a power of two from 8 to {}, it is {}",
                kMaxAlignment, *alignment);
  }
  file.alignment = bytes;
  return {};
}

// Reads what follows a tensor's name; `begin` is its offset in the data.
Result<GgufTensor> read_tensor(Reader& reader, uint64_t alignment) {
  GgufTensor tensor;
  QWEN2_TRY(const uint32_t dimensions, reader.value<uint32_t>("the number of dimensions"));
  if (dimensions < 1 || dimensions > tensor.shape.size()) {
    return fail(ErrorKind::kFormat, "{} dimensions; 1 to {} were expected", dimensions, tensor.shape.size());
  }
  int64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    QWEN2_TRY(const int64_t size, reader.value<int64_t>("a dimension"));
    if (size < 1 || __builtin_mul_overflow(elements, size, &elements)) {
      return fail(ErrorKind::kFormat, "dimension {} is {}: the shape does not fit in 63 bits", i, size);
    }
    tensor.shape[i] = size;
  }
  QWEN2_TRY(const uint32_t number, reader.value<uint32_t>("the type"));
  const TypeRow* type = find_type(number);
  if (type == nullptr) return other_type(number);
  tensor.type = static_cast<GgmlType>(number);
  if (tensor.shape[0] % type->block.elements != 0) {
    return fail(ErrorKind::kFormat, "rows of {} elements are not whole blocks of {} ({})", tensor.shape[0],
                type->block.elements, type->name);
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / type->block.elements, type->block.bytes, &bytes)) {
    return fail(ErrorKind::kFormat, "the size in bytes does not fit in 63 bits");
  }
  tensor.bytes = static_cast<uint64_t>(bytes);
  QWEN2_TRY(tensor.begin, reader.value<uint64_t>("the offset"));
  if (tensor.begin % alignment != 0) {
    return fail(ErrorKind::kFormat, "offset {} is not a multiple of the alignment, {}", tensor.begin,
                alignment);
  }
  return tensor;
}

// Moves the offsets to the file's start and holds them against its end and one another.
Status place_tensors(GgufFile& file, uint64_t header_bytes, uint64_t file_bytes) {
  if (file.tensors.empty()) return {};
  const uint64_t start = (header_bytes + file.alignment - 1) / file.alignment * file.alignment;
  const uint64_t data_bytes = start > file_bytes ? 0 : file_bytes - start;
  std::vector<const std::pair<const std::string, GgufTensor>*> order;
  order.reserve(file.tensors.size());
  for (auto& item : file.tensors) {
    GgufTensor& tensor = item.second;
    if (tensor.begin > data_bytes || tensor.bytes > data_bytes - tensor.begin) {
      return fail(ErrorKind::kFormat,
                  "tensor '{}': {} bytes at offset {} of a data section of {}: the file is truncated",
                  shortened(item.first), tensor.bytes, tensor.begin, data_bytes);
    }
    tensor.begin += start;
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->second.begin < b->second.begin; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = order[i - 1]->second;
    if (before.begin + before.bytes > order[i]->second.begin) {
      return fail(ErrorKind::kFormat, "tensor '{}' overlaps tensor '{}'", shortened(order[i]->first),
                  shortened(order[i - 1]->first));
    }
  }
  return {};
}

Status read_header(Reader& reader, uint64_t& tensors, uint64_t& metadata) {
  QWEN2_TRY(const auto magic, reader.take(kGgufMagic.size(), "the magic number"));
  if (std::memcmp(magic.data(), kGgufMagic.data(), kGgufMagic.size()) != 0) {
    return fail(ErrorKind::kFormat, "does not begin with \"GGUF\": this is no GGUF file");
  }
  QWEN2_TRY(const uint32_t version, reader.value<uint32_t>("the version"));
  if (version == __builtin_bswap32(kVersion)) {
    return fail(ErrorKind::kUnsupported, "big-endian GGUF files are not supported");
  }
  if (version != kVersion) {
    return fail(ErrorKind::kUnsupported, "GGUF version {} is not supported; version {} was expected", version,
                kVersion);
  }
  QWEN2_TRY(tensors, reader.value<uint64_t>("the number of tensors"));
  QWEN2_TRY(metadata, reader.value<uint64_t>("the number of metadata entries"));
  // The least that an entry takes: its name's length and type and a byte; four lengths and two types.
  if (metadata > reader.remaining() / 13) {
    return fail(ErrorKind::kFormat, "the header claims {} metadata entries, {} bytes remain", metadata,
                reader.remaining());
  }
  if (tensors > reader.remaining() / 32) {
    return fail(ErrorKind::kFormat, "the header claims {} tensors, {} bytes remain", tensors,
                reader.remaining());
  }
  return {};
}

template <class T>
std::vector<int64_t> widened(std::span<const std::byte> bytes) {
  std::vector<int64_t> out(bytes.size() / sizeof(T));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = int64_t{load<T>(bytes.data() + i * sizeof(T))};
  }
  return out;
}

}  // namespace

std::string_view ggml_type_name(GgmlType type) {
  const TypeRow* row = find_type(static_cast<uint32_t>(type));
  return row == nullptr ? "?" : row->name;
}

GgmlBlock ggml_block(GgmlType type) {
  const TypeRow* row = find_type(static_cast<uint32_t>(type));
  return row == nullptr ? GgmlBlock{} : row->block;
}

std::optional<std::vector<std::string_view>> GgufArray::strings() const {
  if (element != GgufValueType::kString) return std::nullopt;
  std::vector<std::string_view> out;
  out.reserve(size);
  size_t position = 0;
  for (uint64_t i = 0; i < size; ++i) {
    const auto length = load<uint64_t>(bytes.data() + position);
    position += sizeof length;
    out.emplace_back(reinterpret_cast<const char*>(bytes.data()) + position, length);
    position += length;
  }
  return out;
}

std::optional<std::vector<int64_t>> GgufArray::integers() const {
  switch (element) {
    case GgufValueType::kUint8:
      return widened<uint8_t>(bytes);
    case GgufValueType::kInt8:
      return widened<int8_t>(bytes);
    case GgufValueType::kUint16:
      return widened<uint16_t>(bytes);
    case GgufValueType::kInt16:
      return widened<int16_t>(bytes);
    case GgufValueType::kUint32:
      return widened<uint32_t>(bytes);
    case GgufValueType::kInt32:
      return widened<int32_t>(bytes);
    case GgufValueType::kInt64:
      return widened<int64_t>(bytes);
    default:
      return std::nullopt;
  }
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = metadata.find(key);
  return found == metadata.end() ? nullptr : &found->second;
}

Result<std::optional<int64_t>> GgufFile::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* plain = std::get_if<int64_t>(value)) return *plain;
  const auto* wide = std::get_if<uint64_t>(value);
  if (wide != nullptr && *wide <= INT64_MAX) return static_cast<int64_t>(*wide);
  return fail(ErrorKind::kFormat, "'{}' must be an integer of 63 bits", key);
}

Result<std::optional<double>> GgufFile::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* plain = std::get_if<double>(value); plain != nullptr && std::isfinite(*plain))
    return *plain;
  const auto whole = integer(key);
  if (!whole) return fail(ErrorKind::kFormat, "'{}' must be a finite number", key);
  return static_cast<double>(**whole);
}

Result<std::optional<bool>> GgufFile::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* plain = std::get_if<bool>(value)) return *plain;
  return fail(ErrorKind::kFormat, "'{}' must be a bool", key);
}

Result<std::optional<std::string_view>> GgufFile::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* plain = std::get_if<std::string_view>(value)) return *plain;
  return fail(ErrorKind::kFormat, "'{}' must be a string", key);
}

Result<GgufFile> parse_gguf(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  GgufFile file;
  uint64_t tensors = 0;
  uint64_t metadata = 0;
  QWEN2_CHECK(read_header(reader, tensors, metadata));
  QWEN2_CHECK(read_metadata(reader, metadata, file));
  for (uint64_t i = 0; i < tensors; ++i) {
    const auto name = reader.string("a tensor's name");
    if (!name) return within(fmt::format("tensor {}", i), name.error());
    const auto tensor = read_tensor(reader, file.alignment);
    if (!tensor) return within(fmt::format("tensor '{}'", shortened(*name)), tensor.error());
    if (!file.tensors.emplace(*name, *tensor).second) {
      return fail(ErrorKind::kFormat, "tensor '{}' occurs twice", shortened(*name));
    }
  }
  QWEN2_CHECK(place_tensors(file, reader.position(), bytes.size()));
  return file;
}

}  // namespace qwen2

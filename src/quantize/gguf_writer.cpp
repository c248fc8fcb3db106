#include "quantize/gguf_writer.h"

#include <boost/json.hpp>
#include <cstring>

#include "base/units.h"
#include "checkpoint/architecture.h"
#include "checkpoint/gguf.h"
#include "checkpoint/qwen2_pattern.h"
#include "quantize/model_writer.h"
#include "quantize/rounding.h"
#include "quantize/tensor_file.h"
#include "tokenizer/tokenizer_json.h"

namespace qwen2::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr uint32_t kVersion = 3;
constexpr int64_t kAlignment = 32;
// The format's numbers: of the whole file's type, of the quantisation's version, and of kinds of tokens.
constexpr uint32_t kMostlyQ4 = 2;
constexpr uint32_t kMostlyQ8 = 7;
constexpr uint32_t kQuantizationVersion = 2;
constexpr int32_t kNormalToken = 1;
constexpr int32_t kControlToken = 3;
constexpr int32_t kUserToken = 4;
constexpr int32_t kUnusedToken = 5;

class Bytes {
 public:
  template <class T>
  void number(T value) {
    const auto raw = std::as_bytes(std::span(&value, 1));
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
  }
  void string(std::string_view text) {
    number(static_cast<uint64_t>(text.size()));
    const auto raw = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
  }
  void append(const Bytes& other) { bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end()); }
  void pad(int64_t alignment) { bytes_.resize(static_cast<size_t>(round_up(size(), alignment))); }
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  [[nodiscard]] std::span<const std::byte> view() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class Metadata {
 public:
  void add(std::string_view key, uint32_t value) {
    start(key, GgufValueType::kUint32);
    bytes_.number(value);
  }
  void add(std::string_view key, float value) {
    start(key, GgufValueType::kFloat32);
    bytes_.number(value);
  }
  void add(std::string_view key, bool value) {
    start(key, GgufValueType::kBool);
    bytes_.number(static_cast<uint8_t>(value ? 1 : 0));
  }
  void add(std::string_view key, std::string_view value) {
    start(key, GgufValueType::kString);
    bytes_.string(value);
  }
  void add(std::string_view key, const std::vector<std::string>& values) {
    start_array(key, GgufValueType::kString, values.size());
    for (const std::string& value : values) bytes_.string(value);
  }
  void add(std::string_view key, const std::vector<int32_t>& values) {
    start_array(key, GgufValueType::kInt32, values.size());
    for (const int32_t value : values) bytes_.number(value);
  }
  [[nodiscard]] uint64_t count() const { return count_; }
  [[nodiscard]] const Bytes& bytes() const { return bytes_; }

 private:
  void start(std::string_view key, GgufValueType type) {
    ++count_;
    bytes_.string(key);
    bytes_.number(type);
  }
  void start_array(std::string_view key, GgufValueType element, size_t size) {
    start(key, GgufValueType::kArray);
    bytes_.number(element);
    bytes_.number(static_cast<uint64_t>(size));
  }

  Bytes bytes_;
  uint64_t count_ = 0;
};

void add_architecture(Metadata& metadata, const Qwen2Config& c, int bits) {
  const auto number = [](int64_t value) { return static_cast<uint32_t>(value); };
  metadata.add("general.architecture", std::string_view("qwen2"));
  metadata.add("general.file_type", bits == 8 ? kMostlyQ8 : kMostlyQ4);
  metadata.add("general.quantization_version", kQuantizationVersion);
  metadata.add("qwen2.block_count", number(c.layers));
  metadata.add("qwen2.context_length", number(c.max_position_embeddings));
  metadata.add("qwen2.embedding_length", number(c.hidden_size));
  metadata.add("qwen2.feed_forward_length", number(c.intermediate_size));
  metadata.add("qwen2.attention.head_count", number(c.heads));
  metadata.add("qwen2.attention.head_count_kv", number(c.kv_heads));
  metadata.add("qwen2.attention.key_length", number(c.head_dim));
  metadata.add("qwen2.attention.value_length", number(c.head_dim));
  metadata.add("qwen2.rope.freq_base", static_cast<float>(c.rope_theta));
  if (c.yarn) {
    metadata.add("qwen2.rope.scaling.type", std::string_view("yarn"));
    metadata.add("qwen2.rope.scaling.factor", static_cast<float>(c.yarn->factor));
    metadata.add("qwen2.rope.scaling.original_context_length",
                 static_cast<uint32_t>(c.yarn->original_context));
  }
  metadata.add("qwen2.attention.layer_norm_rms_epsilon", c.rms_norm_eps);
}

std::unexpected<Error> tokenizer_error(std::string_view what) {
  return fail(ErrorKind::kFormat, "tokenizer.json: {}", what);
}

struct Token {
  std::string text;
  int32_t kind;
};

// Every id of the embedding; ids without a token are padding.
Result<std::vector<Token>> read_tokens(const json::value& root, int64_t vocab_size) {
  std::vector<Token> tokens;
  tokens.reserve(static_cast<size_t>(vocab_size));
  for (int64_t id = 0; id < vocab_size; ++id) tokens.push_back({fmt::format("[PAD{}]", id), kUnusedToken});
  const auto set = [&](const json::value& id, std::string_view text, int32_t kind) -> Status {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= vocab_size) {
      return fail(ErrorKind::kFormat, "tokenizer.json: the id of '{}' must be from 0 to {}",
                  text.substr(0, 64), vocab_size - 1);
    }
    tokens[static_cast<size_t>(id.get_int64())] = {std::string(text), kind};
    return {};
  };
  json::error_code code;
  const json::value* vocabulary = root.find_pointer("/model/vocab", code);
  if (vocabulary == nullptr || !vocabulary->is_object())
    return tokenizer_error("'model.vocab' must be an object");
  for (const auto& [text, id] : vocabulary->get_object()) QWEN2_CHECK(set(id, text, kNormalToken));
  const json::value* added = root.as_object().if_contains("added_tokens");
  if (added == nullptr || !added->is_array()) return tokenizer_error("'added_tokens' must be an array");
  for (const json::value& token : added->get_array()) {
    const json::object* fields = token.if_object();
    if (fields == nullptr || !fields->contains("id") || !fields->contains("content") ||
        !fields->at("content").is_string()) {
      return tokenizer_error("an added token must have 'id' and 'content'");
    }
    const json::value* special = fields->if_contains("special");
    const bool control = special != nullptr && special->is_bool() && special->get_bool();
    QWEN2_CHECK(
        set(fields->at("id"), fields->at("content").get_string(), control ? kControlToken : kUserToken));
  }
  return tokens;
}

// "a b", as files have them in that form or as pairs.
Result<std::vector<std::string>> read_merges(const json::value& root) {
  json::error_code code;
  const json::value* merges = root.find_pointer("/model/merges", code);
  if (merges == nullptr || !merges->is_array()) return tokenizer_error("'model.merges' must be an array");
  std::vector<std::string> texts;
  for (const json::value& merge : merges->get_array()) {
    const json::array* pair = merge.if_array();
    if (merge.is_string()) {
      texts.emplace_back(merge.get_string());
    } else if (pair != nullptr && pair->size() == 2 && (*pair)[0].is_string() && (*pair)[1].is_string()) {
      texts.push_back(fmt::format("{} {}", std::string_view((*pair)[0].get_string()),
                                  std::string_view((*pair)[1].get_string())));
    } else {
      return tokenizer_error("a merge must be a string or two");
    }
  }
  return texts;
}

// The format knows one pattern by the name "qwen2", and one token in front of a text.
Status add_surrounding_tokens(Metadata& metadata, const TokenizerTexts& texts) {
  QWEN2_TRY(const TokenizerParts parts, parse_tokenizer_json(texts.tokenizer_json));
  if (parts.pattern != kQwen2Pattern) return tokenizer_error("the pre-tokeniser's pattern must be Qwen2's");
  if (parts.before.size() > 1 || !parts.after.empty()) {
    return tokenizer_error("'post_processor' may add one token in front of a text and none behind it");
  }
  metadata.add("tokenizer.ggml.add_bos_token", !parts.before.empty());
  if (!parts.before.empty())
    metadata.add("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(parts.before.front()));
  return {};
}

Status add_tokenizer(Metadata& metadata, const TokenizerTexts& texts, const Qwen2Config& c) {
  json::error_code code;
  const json::value root = json::parse(texts.tokenizer_json, code);
  if (code || !root.is_object()) return tokenizer_error("a JSON object was expected");
  QWEN2_TRY(const auto tokens, read_tokens(root, c.vocab_size));
  QWEN2_TRY(const auto merges, read_merges(root));
  std::vector<std::string> names;
  std::vector<int32_t> kinds;
  for (const Token& token : tokens) {
    names.push_back(token.text);
    kinds.push_back(token.kind);
  }
  metadata.add("tokenizer.ggml.model", std::string_view("gpt2"));
  metadata.add("tokenizer.ggml.pre", std::string_view("qwen2"));
  metadata.add("tokenizer.ggml.tokens", names);
  metadata.add("tokenizer.ggml.token_type", kinds);
  metadata.add("tokenizer.ggml.merges", merges);
  QWEN2_CHECK(add_surrounding_tokens(metadata, texts));
  if (!c.eos_token_ids.empty())
    metadata.add("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(c.eos_token_ids.front()));
  if (!texts.chat_template.empty()) {
    metadata.add("tokenizer.chat_template", std::string_view(texts.chat_template));
    return {};
  }
  const json::value config = json::parse(texts.tokenizer_config_json, code);
  if (code || !config.is_object()) return {};
  const json::value* chat = config.get_object().if_contains("chat_template");
  if (chat != nullptr && chat->is_string())
    metadata.add("tokenizer.chat_template", std::string_view(chat->get_string()));
  return {};
}

struct Tensor : ModelTensor {
  GgmlType type;  // kF32 for vectors
};

std::vector<Tensor> tensors_of(const Qwen2Config& config, int bits) {
  const GgmlType own = bits == 8 ? GgmlType::kQ8_0 : GgmlType::kQ4_0;
  std::vector<Tensor> tensors;
  for (const ModelTensor& tensor : model_tensors(config)) {
    const GgmlType matrix = tensor.layer ? own : GgmlType::kQ8_0;
    tensors.push_back({tensor, tensor.is_matrix() ? matrix : GgmlType::kF32});
  }
  return tensors;
}

uint64_t byte_size(const Tensor& tensor) {
  const GgmlBlock block = ggml_block(tensor.type);
  return static_cast<uint64_t>(tensor.rows * tensor.cols / block.elements * block.bytes);
}

Result<std::unique_ptr<TensorFile>> create_file(const fs::path& path, const Metadata& metadata,
                                                std::span<const Tensor> tensors) {
  Bytes header;
  header.number(std::array<char, 4>{'G', 'G', 'U', 'F'});
  header.number(kVersion);
  header.number(static_cast<uint64_t>(tensors.size()));
  header.number(metadata.count());
  header.append(metadata.bytes());
  std::map<std::string, TensorFile::Place, std::less<>> places;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    header.string(gguf_tensor_name(tensor.name));
    header.number(uint32_t{tensor.is_matrix() ? 2U : 1U});
    if (tensor.is_matrix()) header.number(static_cast<uint64_t>(tensor.cols));
    header.number(static_cast<uint64_t>(tensor.rows));
    header.number(tensor.type);
    header.number(offset);
    places[tensor.name] = {offset, byte_size(tensor)};
    offset += static_cast<uint64_t>(round_up(static_cast<int64_t>(byte_size(tensor)), kAlignment));
  }
  header.pad(kAlignment);
  for (auto& [name, place] : places) place.begin += static_cast<uint64_t>(header.size());
  return TensorFile::create(path, header.view(), std::move(places));
}

// Blocks of a scale and 32 codes; Q4_0 has the first 16 in the low nibbles.
std::vector<std::byte> pack_blocks(const GroupedWeights& w) {
  std::vector<std::byte> out;
  out.reserve(w.scales.size() * static_cast<size_t>(w.bits == 8 ? 34 : 18));
  for (size_t block = 0; block < w.scales.size(); ++block) {
    const uint16_t scale = w.scales[block];
    out.push_back(static_cast<std::byte>(scale & 0xffU));
    out.push_back(static_cast<std::byte>(scale >> 8U));
    const uint8_t* codes = w.codes.data() + block * kGgufGroup;
    if (w.bits == 8) {  // signed; ours count from -128
      for (int64_t k = 0; k < kGgufGroup; ++k) out.push_back(static_cast<std::byte>(codes[k] ^ 0x80U));
    } else {
      for (int64_t k = 0; k < kGgufGroup / 2; ++k)
        out.push_back(static_cast<std::byte>(codes[k] | (codes[k + kGgufGroup / 2] << 4U)));
    }
  }
  return out;
}

Status write_matrix(const Checkpoint& checkpoint, const cpu::Kernels& kernels, const Tensor& tensor,
                    TensorFile& file) {
  const int bits = tensor.type == GgmlType::kQ8_0 ? 8 : 4;
  const uint64_t row_bytes = byte_size(tensor) / static_cast<uint64_t>(tensor.rows);
  return visit_rows(checkpoint, tensor, [&](int64_t row, const float* values) {
    const GroupedWeights rounded = round_symmetric(kernels, values, 1, tensor.cols, bits, kGgufGroup);
    return file.write(tensor.name, static_cast<uint64_t>(row) * row_bytes, pack_blocks(rounded));
  });
}

Status write_vector(const Checkpoint& checkpoint, const Tensor& tensor, TensorFile& file) {
  std::vector<float> values(static_cast<size_t>(tensor.rows));
  QWEN2_CHECK(checkpoint.load_vector(tensor.name, tensor.rows, values.data()));
  return file.write(tensor.name, 0, std::as_bytes(std::span(values)));
}

Status check_tensors(const Checkpoint& checkpoint, std::span<const Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.is_matrix()) continue;
    if (tensor.cols % kGgufGroup != 0) {
      return fail(ErrorKind::kUnsupported, "tensor '{}' has {} columns; GGUF's blocks need a multiple of {}",
                  tensor.name, tensor.cols, kGgufGroup);
    }
    QWEN2_CHECK(check_plain(checkpoint, tensor));
  }
  return {};
}

}  // namespace

Status write_gguf(const GgufJob& job) {
  QWEN2_TRY(const Qwen2Config config,
            parse_qwen2_config(job.checkpoint.config_json(), job.checkpoint.generation_config_json()));
  const auto tensors = tensors_of(config, job.bits);
  QWEN2_CHECK(check_biases(job.checkpoint, config));
  QWEN2_CHECK(check_tensors(job.checkpoint, tensors));
  if (fs::exists(job.output)) {
    return fail(ErrorKind::kInvalidArgument, "--output '{}' exists; a new file was expected",
                job.output.string());
  }
  Metadata metadata;
  add_architecture(metadata, config, job.bits);
  if (!job.tokenizer.tokenizer_json.empty()) QWEN2_CHECK(add_tokenizer(metadata, job.tokenizer, config));
  QWEN2_TRY(const auto file, create_file(job.output, metadata, tensors));
  const cpu::Kernels& kernels = cpu::kernels_for(cpu::detect_isa());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    QWEN2_CHECK(tensor.is_matrix() ? write_matrix(job.checkpoint, kernels, tensor, *file)
                                   : write_vector(job.checkpoint, tensor, *file));
    const bool ends_layer = i + 1 == tensors.size() || tensors[i + 1].layer != tensor.layer;
    if (job.progress && tensor.layer && ends_layer) job.progress(*tensor.layer + 1, config.layers);
  }
  return file->finish();
}

}  // namespace qwen2::quantize

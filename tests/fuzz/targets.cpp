#include "targets.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <span>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_metadata.h"
#include "checkpoint/safetensors.h"
#include "model/qwen2_config.h"
#include "server/openai_schema.h"
#include "tensor/quantized_storage.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/jinja/template.h"
#include "tokenizer/tokenizer.h"

namespace qwen2::fuzz {
namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

// Copies every row of a quantised tensor, as a checkpoint does.
void copy_rows(const GgufTensor& tensor, std::string_view bytes) {
  const auto format = gguf_format(tensor.type);
  if (!format || tensor.shape[2] != 1 || tensor.shape[3] != 1) return;
  const QuantizedStorage storage(*format, tensor.shape[1], tensor.shape[0]);
  const auto source = std::as_bytes(std::span(bytes)).subspan(tensor.begin, tensor.bytes);
  const size_t row_bytes = source.size() / static_cast<size_t>(tensor.shape[1]);
  for (int64_t row = 0; row < tensor.shape[1]; ++row) {
    const std::byte* const start = source.data() + static_cast<size_t>(row) * row_bytes;
    static_cast<void>(copy_gguf_row(tensor.type, start, storage.matrix(), row));
  }
}

}  // namespace

void safetensors(std::string_view bytes) {
  const auto header = parse_safetensors({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  if (!header) return require(!header.error().message.empty());
  // What a reader may rely on: every tensor lies inside of the file.
  for (const auto& [name, entry] : header->tensors) {
    require(entry.begin <= entry.end && header->data_start + entry.end <= bytes.size());
  }
}

void gguf(std::string_view bytes) {
  const auto file = parse_gguf({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  if (!file) return require(!file.error().message.empty());
  for (const auto& [name, tensor] : file->tensors) {
    require(tensor.begin <= bytes.size() && tensor.bytes <= bytes.size() - tensor.begin);
    copy_rows(tensor, bytes);
  }
  const auto text = gguf_config_json(*file);
  const auto generation = gguf_generation_config_json(*file);
  require(text || !text.error().message.empty());
  require(generation || !generation.error().message.empty());
  if (text && generation) {
    const auto parsed = parse_qwen2_config(*text, *generation);
    require(parsed || !parsed.error().message.empty());
  }
  const auto texts = gguf_tokenizer(*file);
  if (!texts) return require(!texts.error().message.empty());
  const auto parsed = Tokenizer::parse(texts->tokenizer_json);
  // Whatever else is wrong, the text is JSON.
  require(parsed || parsed.error().message.find("not valid JSON") == std::string::npos);
  const auto chat = ChatTemplate::parse(texts->tokenizer_config_json, "the metadata");
  require(chat || !chat.error().message.empty());
}

void config(std::string_view bytes) {
  const auto parsed = parse_qwen2_config(bytes, bytes);
  if (!parsed) return require(!parsed.error().message.empty());
  require(parsed->heads > 0 && parsed->kv_heads > 0 && parsed->head_dim > 0 && parsed->qkv_size() > 0);
}

void tokenizer(std::string_view bytes) {
  const auto parsed = Tokenizer::parse(bytes);
  if (!parsed) return require(!parsed.error().message.empty());
  const auto ids = parsed->encode(bytes.substr(0, 4096));
  if (ids) static_cast<void>(parsed->decode(*ids));
}

void chat_template(std::string_view bytes) {
  const size_t end = std::min(bytes.find('\0'), bytes.size());
  const auto parsed = jinja::Template::parse(bytes.substr(0, end));
  if (!parsed) return require(!parsed.error().message.empty());
  boost::json::error_code code;
  const auto messages = boost::json::parse(bytes.substr(std::min(end + 1, bytes.size())), code);
  auto value = jinja::from_json(code ? boost::json::value(boost::json::array()) : messages, true);
  if (!value) return;
  jinja::Limits limits;
  limits.steps = 200'000;
  limits.bytes = size_t{8} << 20;
  const auto text = parsed->render({{"messages", std::move(*value)},
                                    {"add_generation_prompt", jinja::Value::boolean(true)},
                                    {"bos_token", jinja::Value::own("<s>")}},
                                   0, limits);
  if (!text) return require(!text.error().message.empty());
  size_t position = 0;  // marks are in order, within the text and apart
  for (const auto& [from, to] : text->from_messages()) {
    require(from < to && to <= text->size() && (position == 0 || from > position));
    position = to;
  }
}

void request(std::string_view bytes) {
  ServedModel model;
  model.name = std::string(1, 'm');
  model.max_model_len = 100;
  for (const Endpoint endpoint : {Endpoint::kChat, Endpoint::kCompletions, Endpoint::kGenerate}) {
    const auto parsed = parse_request(endpoint, bytes, model);
    if (!parsed) require(parsed.error().status >= 400 && !parsed.error().body().empty());
  }
}

}  // namespace qwen2::fuzz

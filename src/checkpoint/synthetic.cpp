// Random weights in published shapes: speed and memory do not depend on what the weights say.
#include <algorithm>
#include <array>
#include <functional>
#include <set>

#include "checkpoint/architecture.h"
#include "checkpoint/checkpoint.h"

namespace qwen2 {
namespace {

struct Shape {
  std::string_view name;
  int hidden, layers, heads, kv_heads, intermediate, vocabulary;
  bool tied;
};

// From the config.json files of Qwen/Qwen2-{0.5B,1.5B,7B}-Instruct.
constexpr std::array<Shape, 3> kShapes{{{"qwen2-0.5b", 896, 24, 14, 2, 4864, 151936, true},
                                        {"qwen2-1.5b", 1536, 28, 12, 2, 8960, 151936, true},
                                        {"qwen2-7b", 3584, 28, 28, 4, 18944, 152064, false}}};

// SplitMix64: a counter gives the i-th number of a stream without the ones before it.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

uint64_t hash(std::string_view text, uint64_t seed) {
  uint64_t value = mix(seed);
  for (const char c : text) value = mix(value ^ static_cast<unsigned char>(c));
  return value;
}

// Uniform with the standard deviation 0.02 that Transformers initialises with.
float uniform(uint64_t bits16) {
  return static_cast<float>(static_cast<int16_t>(bits16)) * (0.02F * 1.7320508F / 32768.0F);
}

class Synthetic final : public Checkpoint {
 public:
  Synthetic(const Shape& shape, uint64_t seed) : shape_(shape), seed_(seed) {
    const ModelSizes sizes{shape.vocabulary, shape.hidden,   shape.intermediate,         shape.layers,
                           shape.heads,      shape.kv_heads, shape.hidden / shape.heads, shape.tied};
    for (const ModelTensor& tensor : model_tensors(sizes)) names_.insert(tensor.name);
  }

  std::string config_json() const override {
    return fmt::format(
        R"({{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen2","hidden_act":"silu","hidden_size":{},)"
        R"("num_hidden_layers":{},"num_attention_heads":{},"num_key_value_heads":{},"intermediate_size":{},)"
        R"("vocab_size":{},"tie_word_embeddings":{},"max_position_embeddings":32768,"rope_theta":1000000.0,)"
        R"("rms_norm_eps":1e-06,"use_sliding_window":false,"torch_dtype":"bfloat16","bos_token_id":151643,)"
        R"("eos_token_id":151645}})",
        shape_.hidden, shape_.layers, shape_.heads, shape_.kv_heads, shape_.intermediate, shape_.vocabulary,
        shape_.tied);
  }
  std::string generation_config_json() const override { return R"({"eos_token_id":[151645,151643]})"; }

  bool has(std::string_view name) const override { return names_.contains(name); }

  Result<std::optional<QuantizedFormat>> matrix_format(std::string_view /*name*/, int64_t /*rows*/,
                                                       int64_t /*cols*/) const override {
    return std::nullopt;
  }

  Status read_matrix(std::string_view name, int64_t rows, int64_t cols, const RowSink& sink) const override {
    const uint64_t stream = hash(name, seed_);
    const auto quads = static_cast<uint64_t>(cols) / 4;
#pragma omp parallel
    {
      std::vector<float> values(static_cast<size_t>(cols));
#pragma omp for schedule(static, kBlockRows)
      for (int64_t row = 0; row < rows; ++row) {
        for (uint64_t quad = 0; quad < quads; ++quad) {
          const uint64_t bits = mix(stream + static_cast<uint64_t>(row) * quads + quad);
          for (size_t i = 0; i < 4; ++i) values[quad * 4 + i] = uniform(bits >> (16 * i));
        }
        sink(row, values.data());
      }
    }
    return {};
  }

  Status load_vector(std::string_view name, int64_t size, float* out) const override {
    const bool norm = name.ends_with("norm.weight");
    const uint64_t stream = hash(name, seed_);
    for (int64_t i = 0; i < size; ++i)
      out[i] = (norm ? 1.0F : 0.0F) + uniform(mix(stream + static_cast<uint64_t>(i)));
    return {};
  }

 private:
  const Shape shape_;
  std::set<std::string, std::less<>> names_;
  uint64_t seed_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_synthetic(std::string_view name, uint64_t seed) {
  for (const Shape& shape : kShapes) {
    if (shape.name == name) return std::make_unique<Synthetic>(shape, seed);
  }
  return fail(ErrorKind::kNotFound,
              "unknown synthetic model '{}'; expected qwen2-0.5b, qwen2-1.5b or qwen2-7b", name);
}

}  // namespace qwen2

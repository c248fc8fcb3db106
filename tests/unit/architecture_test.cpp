#include "checkpoint/architecture.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

namespace qwen2 {
namespace {

constexpr ModelSizes kSizes{.vocab_size = 1000,
                            .hidden_size = 96,
                            .intermediate_size = 256,
                            .layers = 1,
                            .heads = 4,
                            .kv_heads = 2,
                            .head_dim = 32,
                            .tied_head = true};

// "Hugging Face's name | GGUF's name | shape".
std::string line(const ModelTensor& tensor) {
  const std::string cols = tensor.is_matrix() ? fmt::format(" x {}", tensor.cols) : "";
  return fmt::format("{} | {} | {}{}", tensor.name, gguf_tensor_name(tensor.name), tensor.rows, cols);
}

std::vector<std::string> lines(const std::vector<ModelTensor>& tensors) {
  std::vector<std::string> texts;
  std::ranges::transform(tensors, std::back_inserter(texts), line);
  return texts;
}

// As the model.safetensors of Qwen2 and llama.cpp's conversions of it have them.
const std::vector<std::string> kTied{
    "model.embed_tokens.weight | token_embd.weight | 1000 x 96",
    "model.layers.0.input_layernorm.weight | blk.0.attn_norm.weight | 96",
    "model.layers.0.self_attn.q_proj.weight | blk.0.attn_q.weight | 128 x 96",
    "model.layers.0.self_attn.k_proj.weight | blk.0.attn_k.weight | 64 x 96",
    "model.layers.0.self_attn.v_proj.weight | blk.0.attn_v.weight | 64 x 96",
    "model.layers.0.self_attn.o_proj.weight | blk.0.attn_output.weight | 96 x 128",
    "model.layers.0.mlp.gate_proj.weight | blk.0.ffn_gate.weight | 256 x 96",
    "model.layers.0.mlp.up_proj.weight | blk.0.ffn_up.weight | 256 x 96",
    "model.layers.0.mlp.down_proj.weight | blk.0.ffn_down.weight | 96 x 256",
    "model.layers.0.self_attn.q_proj.bias | blk.0.attn_q.bias | 128",
    "model.layers.0.self_attn.k_proj.bias | blk.0.attn_k.bias | 64",
    "model.layers.0.self_attn.v_proj.bias | blk.0.attn_v.bias | 64",
    "model.layers.0.post_attention_layernorm.weight | blk.0.ffn_norm.weight | 96",
    "model.norm.weight | output_norm.weight | 96"};

TEST(Architecture, HasTheTensorsOfATiedModel) {
  EXPECT_EQ(lines(model_tensors(kSizes)), kTied);
}

TEST(Architecture, HasAHeadWhereItIsNotTheEmbedding) {
  ModelSizes sizes = kSizes;
  sizes.tied_head = false;
  std::vector<std::string> expected = kTied;
  expected.emplace_back("lm_head.weight | output.weight | 1000 x 96");
  EXPECT_EQ(lines(model_tensors(sizes)), expected);
}

TEST(Architecture, RepeatsALayer) {
  ModelSizes sizes = kSizes;
  sizes.layers = 12;
  const auto all = lines(model_tensors(sizes));
  EXPECT_EQ(all.size(), 2U + size_t{12} * 12);
  const auto last = lines(layer_tensors(sizes, 11));
  EXPECT_EQ(last.front(), "model.layers.11.input_layernorm.weight | blk.11.attn_norm.weight | 96");
  EXPECT_TRUE(std::equal(last.begin(), last.end(), all.end() - 13));
}

TEST(Architecture, TensorsOfOneRoleAreRowsOfOneMatrix) {
  std::vector<std::string> places;
  for (const ModelTensor& tensor : layer_tensors(kSizes, 0)) {
    EXPECT_EQ(tensor.layer, 0);
    if (tensor.first_row > 0) places.push_back(fmt::format("{} {}", tensor.name, tensor.first_row));
  }
  EXPECT_EQ(places,
            (std::vector<std::string>{
                "model.layers.0.self_attn.k_proj.weight 128", "model.layers.0.self_attn.v_proj.weight 192",
                "model.layers.0.mlp.up_proj.weight 256", "model.layers.0.self_attn.k_proj.bias 128",
                "model.layers.0.self_attn.v_proj.bias 192"}));
}

TEST(Architecture, OtherNamesHaveNoNameInGguf) {
  for (const char* name : {"", "model.layers.0", "model.layers.0.self_attn.q_norm.weight",
                           "input_layernorm.weight", "model.layers.norm.weight"}) {
    EXPECT_EQ(gguf_tensor_name(name), "") << name;
  }
}

}  // namespace
}  // namespace qwen2

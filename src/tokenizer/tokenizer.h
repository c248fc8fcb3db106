// A Hugging Face tokenizer.json of the Qwen2 kind: NFC, the Qwen2 pattern, byte-level BPE, added tokens.
// Format: https://huggingface.co/docs/tokenizers
#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "tokenizer/bpe.h"
#include "tokenizer/marked_text.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer_json.h"

namespace qwen2 {

class Tokenizer {
 public:
  // tokenizer.json of the folder, or vocab.json and merges.txt where there is none.
  static Result<Tokenizer> load(const std::filesystem::path& folder);
  // From the text of a tokenizer.json. What the file asks for beyond the Qwen2 kind is an error that names
  // it.
  static Result<Tokenizer> parse(std::string_view tokenizer_json);

  // A text by itself, with what the file puts around one (a BOS token). Ill-formed UTF-8 is read as U+FFFD. The
  // text of an added token becomes that token. Thread-safe.
  [[nodiscard]] Result<std::vector<TokenId>> encode(std::string_view text) const;
  // A rendered chat, or a part of a text: nothing is put around it. Special tokens are not looked for in what
  // messages brought; there they are text.
  [[nodiscard]] Result<std::vector<TokenId>> encode(const MarkedText& text) const;

  // The bytes of the tokens, ill-formed UTF-8 replaced. Unknown ids give nothing.
  [[nodiscard]] std::string decode(std::span<const TokenId> ids, bool skip_special = false) const;

  // Raw bytes of one token; empty for unknown ids.
  [[nodiscard]] std::string_view token_bytes(TokenId id) const;
  [[nodiscard]] bool is_special(TokenId id) const;
  [[nodiscard]] std::optional<TokenId> added_token(std::string_view text) const;
  // One more than the largest id.
  [[nodiscard]] size_t size() const { return bytes_.size(); }

 private:
  struct AddedTokens {
    std::vector<AddedToken> list;  // longest first
    std::array<bool, 256> first_bytes{};

    // After the list is filled.
    void prepare();
    // The longest token at `position`; null where there is none.
    [[nodiscard]] const AddedToken* at(const MarkedText& text, size_t position) const;
    // Appends the tokens in `text`, and calls ordinary(begin, end) for what lies between them.
    template <class Ordinary>
    Status split(const MarkedText& text, std::vector<TokenId>& out, Ordinary ordinary) const;
  };

  Tokenizer(Bpe bpe, Pretokenizer pretokenizer)
      : bpe_(std::move(bpe)), pretokenizer_(std::move(pretokenizer)) {}
  static Result<Tokenizer> create(TokenizerParts parts);
  Status encode_ordinary(const MarkedText& text, size_t begin, size_t end, std::vector<TokenId>& out) const;
  Status encode_pieces(std::string_view text, std::vector<TokenId>& out) const;

  Bpe bpe_;
  Pretokenizer pretokenizer_;
  bool nfc_ = false;
  AddedTokens added_;       // looked for in the text as it is
  AddedTokens normalized_;  // looked for after NFC
  std::vector<TokenId> before_, after_;
  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
};

// Turns tokens into text one at a time without ever emitting part of a character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  // The text that `id` completes; special tokens give none.
  std::string push(TokenId id);
  // What is left at the end, replaced where it is no whole character.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace qwen2

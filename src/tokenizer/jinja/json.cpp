#include "tokenizer/jinja/json.h"

#include <algorithm>
#include <cmath>

#include "tokenizer/utf8.h"

namespace qwen2::jinja {
namespace {

std::string escaped(char32_t c, bool ascii) {
  switch (c) {
    case U'"':
      return "\\\"";
    case U'\\':
      return "\\\\";
    case U'\n':
      return "\\n";
    case U'\r':
      return "\\r";
    case U'\t':
      return "\\t";
    case U'\f':
      return "\\f";
    case U'\b':
      return "\\b";
    default:
      break;
  }
  if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000))
    return fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
  if (ascii && c >= 0x10000) {
    const uint32_t rest = static_cast<uint32_t>(c) - 0x10000;
    return fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
  }
  std::string out;
  append_utf8(out, c);
  return out;
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return number_text(value);
}

class Writer {
 public:
  explicit Writer(const JsonStyle& style) : style_(&style) {}

  Status write(const Value& value) {
    if (value.is_none()) return own("null");
    if (const bool* boolean = value.get<bool>()) return own(*boolean ? "true" : "false");
    if (const int64_t* integer = value.get<int64_t>()) return own(std::to_string(*integer));
    if (const double* real = value.get<double>()) return own(number(*real));
    if (const MarkedText* text = value.text()) return string(*text);
    if (const Dict* dict = value.dict()) return object(*dict);
    const List* list = value.list();
    if (list != nullptr && (list->kind == ListKind::kList || list->kind == ListKind::kTuple))
      return array(*list);
    return fail(ErrorKind::kInvalidArgument, "a {} has no form in JSON", type_name(value));
  }

  MarkedText take() { return std::move(out_); }

 private:
  Status own(std::string_view text) {
    out_.append(text, false);
    return {};
  }

  Status string(const MarkedText& text) {
    QWEN2_CHECK(own("\""));
    for (size_t i = 0; i < text.size();) {
      const size_t begin = i;
      const char32_t c = next_code_point(text.text(), i);
      out_.append(escaped(c, style_->ascii), text.is_from_message(begin, i));
    }
    return own("\"");
  }

  void line() {
    if (!style_->indent) return;
    std::string text = "\n";
    for (size_t i = 0; i < level_; ++i) text += *style_->indent;
    out_.append(text, false);
  }

  void begin_item(bool first) {
    if (!first) out_.append(style_->between, false);
    line();
  }

  Status end(std::string_view bracket) {
    --level_;
    line();
    return own(bracket);
  }

  Status array(const List& list) {
    if (list.items.empty()) return own("[]");
    QWEN2_CHECK(own("["));
    ++level_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      begin_item(i == 0);
      QWEN2_CHECK(write(list.items[i]));
    }
    return end("]");
  }

  Status key(const Value& value) {
    if (value.text() != nullptr) return string(*value.text());
    if (value.is_none() || value.is_number()) {
      QWEN2_CHECK(own("\""));
      QWEN2_CHECK(write(value));
      return own("\"");
    }
    return fail(ErrorKind::kInvalidArgument, "a {} is no key in JSON", type_name(value));
  }

  Status object(const Dict& dict) {
    if (dict.items.empty()) return own("{}");
    QWEN2_CHECK(own("{"));
    ++level_;
    std::vector<const std::pair<Value, Value>*> items;
    items.reserve(dict.items.size());
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_->sort_keys) {
      QWEN2_CHECK(sort(items));
    }
    for (size_t i = 0; i < items.size(); ++i) {
      begin_item(i == 0);
      QWEN2_CHECK(key(items[i]->first));
      QWEN2_CHECK(own(style_->behind_key));
      QWEN2_CHECK(write(items[i]->second));
    }
    return end("}");
  }

  static Status sort(std::vector<const std::pair<Value, Value>*>& items) {
    Status status;
    std::ranges::stable_sort(items, [&](const auto* a, const auto* b) {
      const auto before = less(a->first, b->first);
      if (!before) status = std::unexpected(before.error());
      return before.value_or(false);
    });
    return status;
  }

  const JsonStyle* style_;
  size_t level_ = 0;
  MarkedText out_;
};

}  // namespace

Result<MarkedText> to_json(const Value& value, const JsonStyle& style) {
  Writer writer(style);
  QWEN2_CHECK(writer.write(value));
  return writer.take();
}

}  // namespace qwen2::jinja

#include "loadgen/plan.h"

#include <algorithm>
#include <random>

#include "loadgen/prompt_file.h"
#include "loadgen/trace.h"
#include "loadgen/workload.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

// What a request is made of, before its body is.
struct Draft {
  double offset = 0;
  std::string prompt;  // empty: made of words
  int64_t input = 0;
  int64_t output = 0;
};

Result<int64_t> template_tokens(const LoadTestOptions& o, const Tokenizer& tokenizer,
                                const ChatTemplate& chat) {
  const ChatMessage empty{"user", ""};
  QWEN2_TRY(const auto tokens, o.flavour == ApiFlavour::kChat
                                   ? chat_tokens(tokenizer, chat, std::span(&empty, 1), true)
                                   : tokenizer.encode(""));
  return static_cast<int64_t>(tokens.size());
}

// Lengths by index, so that a test with more requests begins like one with fewer.
std::mt19937_64 generator(const LoadTestOptions& o, uint64_t index) {
  std::seed_seq mixed{o.seed, o.seed >> 32, o.part, index, uint64_t{0x1e57}};
  return std::mt19937_64(mixed);
}

Draft synthetic_draft(const LoadTestOptions& o, uint64_t index) {
  std::mt19937_64 random = generator(o, index);
  Draft draft;
  draft.input = o.ctx_len.sample(random);
  draft.output = o.max_new_tokens.value_or(kDefaultNewTokens).sample(random);
  return draft;
}

Result<std::vector<Draft>> trace_drafts(const LoadTestOptions& o, Plan& plan) {
  QWEN2_TRY(const Trace trace, read_trace(o.trace));
  plan.trace_rows_skipped = trace.skipped;
  const auto available = static_cast<int64_t>(trace.entries.size());
  const int64_t count = o.requests.value_or(available);
  if (count > available) {
    return fail(ErrorKind::kInvalidArgument, "--requests {}: --trace '{}' has {}", count, o.trace, available);
  }
  std::vector<Draft> drafts;
  for (int64_t i = 0; i < count; ++i) {
    const TraceEntry& entry = trace.entries[static_cast<size_t>(i)];
    const double offset = entry.arrival / o.speed;
    if (!(offset <= kMostSeconds)) {
      return fail(ErrorKind::kInvalidArgument,
                  "--trace '{}': request {} comes after {:.3g} seconds at --speed {}, more than {:.0e}",
                  o.trace, i + 1, offset, o.speed, kMostSeconds);
    }
    drafts.push_back({offset, {}, entry.input_tokens, entry.output_tokens});
  }
  return drafts;
}

Result<std::vector<Draft>> file_drafts(const LoadTestOptions& o, const Tokenizer& tokenizer,
                                       const ChatTemplate& chat) {
  QWEN2_TRY(const auto prompts, read_prompts(o.prompts));
  const auto available = static_cast<int64_t>(prompts.size());
  const int64_t count = o.requests.value_or(available);
  if (count > available) {
    return fail(ErrorKind::kInvalidArgument, "--requests {}: --prompts '{}' has {}", count, o.prompts,
                available);
  }
  std::vector<Draft> drafts;
  for (int64_t i = 0; i < count; ++i) {
    const FilePrompt& entry = prompts[static_cast<size_t>(i)];
    const ChatMessage message{"user", entry.prompt};
    const bool is_chat = o.flavour == ApiFlavour::kChat;
    QWEN2_TRY(const auto input, is_chat ? chat_tokens(tokenizer, chat, std::span(&message, 1), true)
                                        : tokenizer.encode(entry.prompt));
    Draft draft{0, entry.prompt, static_cast<int64_t>(input.size()), 0};
    if (o.max_new_tokens) {
      std::mt19937_64 random = generator(o, static_cast<uint64_t>(i));
      draft.output = o.max_new_tokens->sample(random);
    } else {
      QWEN2_TRY(const auto output, tokenizer.encode(MarkedText(entry.answer)));
      draft.output = output.empty() ? kDefaultNewTokens : static_cast<int64_t>(output.size());
    }
    drafts.push_back(std::move(draft));
  }
  return drafts;
}

Result<std::vector<Draft>> make_drafts(const LoadTestOptions& o, const Tokenizer& tokenizer,
                                       const ChatTemplate& chat, Plan& plan) {
  std::vector<Draft> drafts;
  if (!o.trace.empty()) return trace_drafts(o, plan);
  if (!o.prompts.empty()) {
    QWEN2_TRY(drafts, file_drafts(o, tokenizer, chat));
  } else {
    const int64_t count = o.requests.value_or(kDefaultRequests);
    for (int64_t i = 0; i < count; ++i)
      drafts.push_back(synthetic_draft(o, static_cast<uint64_t>(o.warmup + i)));
  }
  if (o.rate) {
    const auto times = arrival_times(o.arrivals, *o.rate, o.burstiness, drafts.size(), o.seed + o.part);
    for (size_t i = 0; i < drafts.size(); ++i) drafts[i].offset = times[i];
  }
  return drafts;
}

class BodyMaker {
 public:
  BodyMaker(const LoadTestOptions& options, const Dialect& dialect, const PromptMaker& prompts,
            int64_t template_size, Question question)
      : options_(options),
        dialect_(dialect),
        prompts_(prompts),
        template_size_(template_size),
        question_(std::move(question)) {}

  // `index` tells the prompts of a test apart.
  Result<PlannedRequest> make(const Draft& draft, uint64_t index) {
    PlannedRequest request;
    request.offset = draft.offset;
    request.exact = draft.prompt.empty();
    request.prompt_tokens = draft.input;
    request.max_new_tokens = draft.output;
    question_.prompt = draft.prompt;
    if (request.exact) {
      const int64_t words = draft.input - template_size_;
      if (words < 1) {
        return fail(ErrorKind::kInvalidArgument,
                    "a prompt of {} tokens ({}) is too short: the chat template alone has {} tokens",
                    draft.input, options_.trace.empty() ? "--ctx-len" : "--trace", template_size_);
      }
      question_.prompt =
          prompts_.make(words, options_.seed, (options_.part << 32) + index, options_.shared_prefix);
    }
    question_.max_new_tokens = draft.output;
    request.body = json::serialize(body_of(dialect_, question_));
    return request;
  }

 private:
  const LoadTestOptions& options_;
  const Dialect& dialect_;
  const PromptMaker& prompts_;
  int64_t template_size_;
  Question question_;
};

}  // namespace

Result<Plan> make_plan(const LoadTestOptions& o, const Dialect& dialect, const std::string& model,
                       const Tokenizer& tokenizer, const ChatTemplate& chat) {
  Plan plan;
  QWEN2_TRY(const PromptMaker prompts, PromptMaker::create(tokenizer));
  QWEN2_TRY(const int64_t template_size, template_tokens(o, tokenizer, chat));
  QWEN2_TRY(const std::vector<Draft> drafts, make_drafts(o, tokenizer, chat, plan));
  Question question{model, {}, 0, o.temperature, o.ignore_eos, 0};
  for (const Draft& draft : drafts) question.context = std::max(question.context, draft.input + draft.output);
  BodyMaker bodies(o, dialect, prompts, template_size, std::move(question));
  for (int64_t i = 0; i < o.warmup; ++i) {
    // A warm-up is like the first requests, with a prompt of its own.
    Draft draft = drafts[static_cast<size_t>(i) % drafts.size()];
    draft.prompt.clear();
    draft.input = std::max(draft.input, template_size + 1);
    QWEN2_TRY(PlannedRequest request, bodies.make(draft, static_cast<uint64_t>(i)));
    plan.warmup.push_back(std::move(request));
  }
  for (size_t i = 0; i < drafts.size(); ++i) {
    QWEN2_TRY(PlannedRequest request, bodies.make(drafts[i], static_cast<uint64_t>(o.warmup) + i));
    plan.requests.push_back(std::move(request));
  }
  return plan;
}

void check_lengths(const PlannedRequest& planned, bool ignore_eos, RequestRecord& record) {
  if (record.prompt_tokens < 0) record.prompt_tokens = planned.prompt_tokens;
  if (planned.exact && record.prompt_tokens != planned.prompt_tokens) {
    set_failure(record, "wrong_length",
                fmt::format("the server counts {} prompt tokens, {} were sent", record.prompt_tokens,
                            planned.prompt_tokens));
  }
  if (ignore_eos && record.completion_tokens >= 0 && record.completion_tokens != planned.max_new_tokens) {
    set_failure(record, "wrong_length",
                fmt::format("the answer has {} tokens, {} were asked for", record.completion_tokens,
                            planned.max_new_tokens));
  }
}

}  // namespace qwen2

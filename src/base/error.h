// Errors as values: every fallible call of the library returns Result<T>.
#pragma once

#include <fmt/format.h>

#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace qwen2 {

enum class ErrorKind {
  kInvalidArgument,  // a flag, a field or an argument has a value that can never work
  kNotFound,         // a file, a tensor or a model is not there
  kIo,               // the operating system refused a read, a write or a socket
  kFormat,           // a file's contents break its format
  kUnsupported,      // well formed, but outside of what this program does
  kOutOfMemory,      // the memory plan does not fit
  kUnavailable,      // the service cannot take the request now (queue full, shutting down)
  kInterrupted,      // a signal ended it early; what was done is kept
  kInternal,         // a bug, or a library that failed unexpectedly
};

// `message` names the file, tensor, flag or field, and what was expected.
struct Error {
  ErrorKind kind;
  std::string message;
};

template <class T>
using Result = std::expected<T, Error>;

using Status = Result<void>;

template <class... Args>
[[nodiscard]] std::unexpected<Error> fail(ErrorKind kind, fmt::format_string<Args...> format,
                                          Args&&... args) {
  return std::unexpected(Error{kind, fmt::format(format, std::forward<Args>(args)...)});
}

// The same error with `where` put before its message, for callers that know the file or the field.
[[nodiscard]] inline std::unexpected<Error> within(std::string_view where, const Error& error) {
  return std::unexpected(Error{error.kind, fmt::format("{}: {}", where, error.message)});
}

#define QWEN2_CONCAT_(a, b) a##b
#define QWEN2_CONCAT(a, b) QWEN2_CONCAT_(a, b)

// QWEN2_TRY(auto x, f()) declares x from f()'s value or returns f()'s error.
#define QWEN2_TRY(declaration, expression)                                      \
  auto QWEN2_CONCAT(result_, __LINE__) = (expression);                          \
  if (!QWEN2_CONCAT(result_, __LINE__)) {                                       \
    return std::unexpected(std::move(QWEN2_CONCAT(result_, __LINE__)).error()); \
  }                                                                             \
  declaration = std::move(*QWEN2_CONCAT(result_, __LINE__)) /* NOLINT(bugprone-macro-parentheses) */

// The same for calls without a value.
#define QWEN2_CHECK(expression)                                \
  do {                                                         \
    if (auto qwen2_status = (expression); !qwen2_status) {     \
      return std::unexpected(std::move(qwen2_status).error()); \
    }                                                          \
  } while (false)

}  // namespace qwen2

// What coroutines of Boost.Asio are awaited with.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace qwen2 {

// Errors come back as values beside the results, not as exceptions.
inline constexpr auto kAwait = boost::asio::as_tuple(boost::asio::use_awaitable);

}  // namespace qwen2

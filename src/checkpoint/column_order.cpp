#include "checkpoint/column_order.h"

#include <algorithm>

namespace qwen2 {

Result<std::vector<int32_t>> column_order(std::string_view name, const RawTensor& g_idx, int64_t group) {
  const int64_t cols = g_idx.shape[0];
  const int64_t groups = cols / group;
  std::vector<int32_t> order(static_cast<size_t>(cols));
  std::vector<int64_t> used(static_cast<size_t>(groups));
  bool natural = true;
  for (int64_t k = 0; k < cols; ++k) {
    const auto own = g_idx.at<int32_t>(k);
    if (own < 0 || own >= groups) {
      return fail(ErrorKind::kFormat, "'{}': tensor '{}' holds {} at [{}]; a group from 0 to {} was expected",
                  g_idx.path, name, own, k, groups - 1);
    }
    int64_t& count = used[static_cast<size_t>(own)];
    if (count == group) {
      return fail(ErrorKind::kFormat,
                  "'{}': tensor '{}' gives group {} more than {} columns; equal groups were expected",
                  g_idx.path, name, own, group);
    }
    order[static_cast<size_t>(own * group + count)] = static_cast<int32_t>(k);
    ++count;
    natural = natural && own == k / group;
  }
  // No group has too many columns, so none has too few.
  if (natural) order.clear();
  return order;
}

Status set_permutation(std::string_view name, const RawTensor& g_idx, const std::vector<int32_t>& order,
                       const QuantizedMatrix& target, int64_t first_row) {
  if (order.empty()) return {};
  if (first_row == 0) {
    std::copy(order.begin(), order.end(), target.permutation);
  } else if (!std::equal(order.begin(), order.end(), target.permutation)) {
    return fail(ErrorKind::kUnsupported,
                "'{}': tensor '{}' orders the columns differently from the modules with the same input",
                g_idx.path, name);
  }
  return {};
}

}  // namespace qwen2

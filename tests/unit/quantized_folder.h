// Folders of tests/fixtures/quantized: opened, compared with their twins, and copied to be damaged.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "model/qwen2_config.h"
#include "paths.h"
#include "tensor/quantized_storage.h"

namespace qwen2::test {

namespace fs = std::filesystem;
namespace json = boost::json;

inline fs::path quantized_folder(const std::string& name) {
  return fixture_folder() / "quantized" / name;
}

// The tensors of one file, to be compared or damaged.
struct File {
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string bytes;

    template <class T>
    void set(size_t index, T value) {
      std::memcpy(bytes.data() + index * sizeof value, &value, sizeof value);
    }
  };
  std::map<std::string, Tensor> tensors;

  explicit File(const fs::path& path) {
    const auto text = read_text_file(path);
    const auto header = parse_safetensors({reinterpret_cast<const std::byte*>(text->data()), text->size()});
    for (const auto& [name, entry] : header->tensors) {
      tensors[name] = {entry.dtype, entry.shape,
                       text->substr(header->data_start + entry.begin, entry.end - entry.begin)};
    }
  }

  void write(const fs::path& path) const {
    json::object header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", json::value_from(tensor.shape)},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    const std::string text = json::serialize(header);
    const uint64_t size = text.size();
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&size), sizeof size) << text << data;
  }
};

struct Shape {
  std::string name;
  int64_t rows;
  int64_t cols;
};

inline std::vector<Shape> quantized_matrices(const Qwen2Config& c) {
  const std::string layer = "model.layers.0.";
  return {{layer + "self_attn.q_proj.weight", c.q_size(), c.hidden_size},
          {layer + "self_attn.k_proj.weight", c.kv_size(), c.hidden_size},
          {layer + "self_attn.v_proj.weight", c.kv_size(), c.hidden_size},
          {layer + "self_attn.o_proj.weight", c.hidden_size, c.q_size()},
          {layer + "mlp.gate_proj.weight", c.intermediate_size, c.hidden_size},
          {layer + "mlp.up_proj.weight", c.intermediate_size, c.hidden_size},
          {layer + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size}};
}

struct Opened {
  std::unique_ptr<Checkpoint> checkpoint;
  Qwen2Config config;
};

inline Result<Opened> open_folder(const fs::path& folder) {
  Opened opened;
  QWEN2_TRY(opened.checkpoint, open_checkpoint(folder.string()));
  QWEN2_TRY(opened.config, parse_qwen2_config(opened.checkpoint->config_json(),
                                              opened.checkpoint->generation_config_json()));
  return opened;
}

inline Result<QuantizedStorage> load_one(const Checkpoint& checkpoint, const Shape& shape) {
  QWEN2_TRY(const std::optional<QuantizedFormat> format,
            checkpoint.matrix_format(shape.name, shape.rows, shape.cols));
  if (!format) return fail(ErrorKind::kInternal, "'{}' is not quantised", shape.name);
  QuantizedStorage storage(*format, shape.rows, shape.cols);
  QWEN2_CHECK(checkpoint.load_quantized(shape.name, shape.rows, storage.matrix(), 0));
  return storage;
}

// Rows [first, first + rows) of `matrix` against the float32 tensor, bit by bit.
inline void expect_rows(const QuantizedMatrix& matrix, int64_t first, int64_t rows,
                        const std::string& expected) {
  const auto row_bytes = static_cast<size_t>(matrix.cols) * sizeof(float);
  std::vector<float> row(static_cast<size_t>(matrix.cols));
  for (int64_t n = 0; n < rows; ++n) {
    matrix.get_row(first + n, row.data());
    ASSERT_EQ(std::memcmp(row.data(), expected.data() + static_cast<size_t>(n) * row_bytes, row_bytes), 0)
        << "row " << n;
  }
}

// A copy of a fixture that can be changed.
class Copy {
 public:
  explicit Copy(const std::string& fixture)
      : folder_(fs::temp_directory_path() / ("qwen2-quantized-" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::copy(quantized_folder(fixture), folder_);
  }
  ~Copy() { fs::remove_all(folder_); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  [[nodiscard]] fs::path weights() const { return folder_ / "model.safetensors"; }
  void edit(const std::function<void(File&)>& change) const {
    File file(weights());
    change(file);
    file.write(weights());
  }
  void set(const std::string& field, const json::value& value,
           const std::string& settings = "quantization_config") const {
    json::value config = json::parse(*read_text_file(folder_ / "config.json"));
    config.at(settings).as_object()[field] = value;
    std::ofstream(folder_ / "config.json") << json::serialize(config);
  }
  // The error of loading every quantised matrix, empty when there is none.
  [[nodiscard]] std::string error() const {
    const auto opened = open_folder(folder_);
    if (!opened) return opened.error().message;
    for (const Shape& shape : quantized_matrices(opened->config)) {
      const auto status = read_expanded(*opened->checkpoint, shape.name, shape.rows, shape.cols,
                                        [](int64_t /*row*/, const float* /*values*/) {});
      if (!status) return status.error().message;
    }
    return "";
  }

 private:
  fs::path folder_;
};

inline const std::string kModule = "model.layers.0.mlp.down_proj";

struct Damage {
  const char* what;
  const char* fixture;
  std::function<void(const Copy&)> change;
  std::vector<std::string> message;  // parts of the error
};

inline std::function<void(const Copy&)> setting(const std::string& field, const json::value& value) {
  return [=](const Copy& copy) { copy.set(field, value); };
}

inline std::function<void(const Copy&)> without(const std::string& tensor) {
  return [=](const Copy& copy) { copy.edit([&](File& file) { file.tensors.erase(kModule + tensor); }); };
}

inline std::function<void(const Copy&)> changed(const std::string& tensor,
                                                const std::function<void(File::Tensor&)>& change) {
  return [=](const Copy& copy) { copy.edit([&](File& file) { change(file.tensors.at(kModule + tensor)); }); };
}

inline std::function<void(const Copy&)> with_dtype(const std::string& tensor, const std::string& dtype) {
  return changed(tensor, [=](File::Tensor& t) { t.dtype = dtype; });
}

inline std::function<void(const Copy&)> with_shape(const std::string& tensor,
                                                   const std::vector<int64_t>& shape) {
  return changed(tensor, [=](File::Tensor& t) { t.shape = shape; });
}

template <class T>
std::function<void(const Copy&)> with_element(const std::string& tensor, size_t index, T value) {
  return changed(tensor, [=](File::Tensor& t) { t.set(index, value); });
}

inline void expect_errors(const std::vector<Damage>& cases) {
  for (const Damage& damage : cases) {
    const Copy copy(damage.fixture);
    ASSERT_EQ(copy.error(), "") << damage.fixture;
    damage.change(copy);
    const std::string error = copy.error();
    for (const std::string& part : damage.message) {
      EXPECT_NE(error.find(part), std::string::npos) << damage.what << ": " << error;
    }
  }
}

}  // namespace qwen2::test

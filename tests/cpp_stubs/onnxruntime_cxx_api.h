// Declarations of ONNX Runtime's C++ interface, only those that the snippets of a bundle call: for the compiler's eyes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
struct OrtMemoryInfo;
struct OrtRunOptions;

namespace Ort {
struct Float16_t {
  uint16_t val;
};
struct Env {
  Env(OrtLoggingLevel level, const char* logid);
};
struct SessionOptions {
  SessionOptions();
  SessionOptions& SetIntraOpNumThreads(int count);
};
struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType memory);
  operator const OrtMemoryInfo*() const;
};
struct Value {
  Value(Value&&);
  Value(const Value&) = delete;
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo* info, T* data, size_t count, const int64_t* shape, size_t rank);
  template <typename T>
  const T* GetTensorData() const;
};
struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options);
  std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs,
                         size_t input_count, const char* const* output_names, size_t output_count);
};
}  // namespace Ort

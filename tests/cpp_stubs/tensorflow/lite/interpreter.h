// Declarations of TensorFlow Lite's C++ interface, only those that the snippets of a bundle call: for the compiler's eyes.
#pragma once
#include <cstddef>

enum TfLiteStatus { kTfLiteOk, kTfLiteError };
union TfLitePtrUnion {
  char* raw;
};
struct TfLiteTensor {
  TfLitePtrUnion data;
};

namespace tflite {
class Interpreter {
 public:
  TfLiteStatus SetNumThreads(int count);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input_tensor(size_t index);
  TfLiteTensor* output_tensor(size_t index);
};
}  // namespace tflite

#pragma once
#include "tensorflow/lite/model.h"

namespace tflite::ops::builtin {
class BuiltinOpResolver : public OpResolver {};
}  // namespace tflite::ops::builtin

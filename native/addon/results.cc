#include "addon/results.h"

#include <algorithm>
#include <vector>

namespace tokenring::addon {
namespace {

Napi::Value number(Napi::Env env, double value) { return Napi::Number::New(env, value); }

Napi::Value array(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

Napi::Value array(Napi::Env env, const std::vector<int32_t>& values) {
  Napi::Int32Array array = Napi::Int32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

}  // namespace

Napi::Value to_js(Napi::Env env, const Nothing&) { return env.Undefined(); }

Napi::Value to_js(Napi::Env env, const int64_t& value) { return number(env, static_cast<double>(value)); }

Napi::Value to_js(Napi::Env env, const double& value) { return number(env, value); }

Napi::Value to_js(Napi::Env env, const Version& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("version", to_js(env, result.version));
  return object;
}

Napi::Value to_js(Napi::Env env, const LossResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("loss", number(env, result.loss));
  object.Set("logprob", array(env, result.logprob));
  object.Set("entropy", array(env, result.entropy));
  object.Set("flags", array(env, result.flags));
  return object;
}

Napi::Value to_js(Napi::Env env, const OptimiserResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("gradientNorm", number(env, result.gradient_norm));
  object.Set("step", to_js(env, result.step));
  object.Set("version", to_js(env, result.version));
  return object;
}

Napi::Value to_js(Napi::Env env, const SampleResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("tokens", array(env, result.tokens));
  object.Set("logprobs", array(env, result.logprobs));
  object.Set("stopped", Napi::Boolean::New(env, result.stopped));
  object.Set("version", to_js(env, result.version));
  return object;
}

Napi::Value to_js(Napi::Env env, const Sampler::Usage& usage) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("sessions", to_js(env, usage.sessions));
  object.Set("pages", to_js(env, usage.pages));
  object.Set("prefilled", to_js(env, usage.prefilled));
  object.Set("decoded", to_js(env, usage.decoded));
  return object;
}

}  // namespace tokenring::addon

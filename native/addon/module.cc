// What require("tokenring.node") returns: the Binding of lib/ops/binding.ts.
#include <napi.h>

#include <thread>

#include "addon/attention.h"
#include "addon/communicator.h"
#include "addon/device_tensor.h"
#include "addon/engine.h"
#include "addon/optimise.h"
#include "addon/plan.h"
#include "addon/policy_loss.h"
#include "addon/rank.h"
#include "addon/state.h"
#include "cpu/kernels.h"
#include "cuda/probe.h"

namespace tokenring::addon {
namespace {

constexpr int kAbi = 5;  // EXPECTED_ABI of lib/ops/binding.ts

Napi::Value set_error_class(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require(info[0].IsFunction(), "errorClass must be a class");
    state_of(info.Env()).error_class = Napi::Persistent(info[0].As<Napi::Function>());
    return info.Env().Undefined();
  });
}

Napi::Value bf16(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const char* fault = cpu::amx_fault();
    Napi::Object result = Napi::Object::New(env);
    result.Set("isa", Napi::String::New(env, cpu::choose_bf16_kernels().isa));
    result.Set("amxFault", fault ? Napi::Value(Napi::String::New(env, fault)) : env.Null());
    return result;
  });
}

Napi::Value cuda(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const CudaProbe probe = probe_cuda();
  Napi::Array devices = Napi::Array::New(env, probe.devices.size());
  for (size_t i = 0; i < probe.devices.size(); ++i) {
    Napi::Object device = Napi::Object::New(env);
    device.Set("name", Napi::String::New(env, probe.devices[i].name));
    device.Set("memoryBytes", Napi::Number::New(env, static_cast<double>(probe.devices[i].memory_bytes)));
    devices.Set(static_cast<uint32_t>(i), device);
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("compiled", Napi::Boolean::New(env, probe.compiled));
  result.Set("devices", devices);
  result.Set("reason", probe.reason.empty() ? env.Null() : Napi::Value(Napi::String::New(env, probe.reason)));
  return result;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* state = new State;
  env.SetInstanceData(state);
  state->channel = Channel::open(env);
  exports.Set("abi", Napi::Number::New(env, kAbi));
  exports.Set("isa", guarded(env, [&] { return Napi::String::New(env, cpu::choose_kernels().isa); }));
  exports.Set("cores", Napi::Number::New(env, std::thread::hardware_concurrency()));
  exports.Set("Rank", RankObject::define(env));
  exports.Set("Communicator", CommunicatorObject::define(env));
  exports.Set("DeviceTensor", DeviceTensorObject::define(env));
  exports.Set("uniqueId", Napi::Function::New<unique_id>(env, "uniqueId"));
  exports.Set("setThreads", Napi::Function::New<set_threads>(env, "setThreads"));
  exports.Set("attention", Napi::Function::New<attention>(env, "attention"));
  exports.Set("attentionBackward", Napi::Function::New<attention_backward>(env, "attentionBackward"));
  exports.Set("policyLoss", Napi::Function::New<policy_loss>(env, "policyLoss"));
  exports.Set("adamw", Napi::Function::New<adamw>(env, "adamw"));
  exports.Set("gradientNorm", Napi::Function::New<gradient_norm>(env, "gradientNorm"));
  exports.Set("planStep", Napi::Function::New<plan_step>(env, "planStep"));
  exports.Set("setErrorClass", Napi::Function::New<set_error_class>(env, "setErrorClass"));
  exports.Set("bf16", Napi::Function::New<bf16>(env, "bf16"));
  exports.Set("cuda", Napi::Function::New<cuda>(env, "cuda"));
  return exports;
}

NODE_API_MODULE(tokenring, init)

}  // namespace
}  // namespace tokenring::addon

// What the addon keeps for one environment, and how native failures become JavaScript errors.
#pragma once

#include <napi.h>

#include <exception>
#include <memory>
#include <utility>

#include "addon/channel.h"
#include "core/failure.h"

namespace tokenring::addon {

class Engine;

struct State {
  Napi::FunctionReference error_class;  // TokenringError, once setErrorClass() was called
  std::shared_ptr<Channel> channel;
  std::shared_ptr<Engine> engine;  // of the functions of tokenring/ops; null until one is called
};

inline State& state_of(Napi::Env env) { return *env.GetInstanceData<State>(); }

// An instance of the registered class with code ERR_TOKENRING_<code>; a plain Error with that `code` before one
// is registered. Failures of other kinds have the code INTERNAL, and OUT_OF_MEMORY if the host's memory ended.
Napi::Value to_javascript(Napi::Env env, std::exception_ptr error);

// Runs a method's body; what it throws becomes a JavaScript exception.
template <class Body>
auto guarded(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Napi::Error(env, to_javascript(env, std::current_exception()));
  }
}

}  // namespace tokenring::addon

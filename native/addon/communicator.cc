#include "addon/communicator.h"

#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "addon/attention.h"
#include "addon/engine.h"
#include "addon/state.h"
#include "parallel/ring_attention.h"

namespace tokenring::addon {
namespace {

// Random, so that no other addon's objects carry it.
constexpr napi_type_tag kCommunicatorTag = {0x52c1d09be7a346f8, 0xa9e4771b3c085d26};

Reduction reduction_argument(Napi::Value value) {
  const std::string text = text_argument(value, "reduction");
  require(text == "sum" || text == "max" || text == "min", "reduction must be \"sum\", \"max\" or \"min\", got \"",
          text, "\"");
  return text == "sum" ? Reduction::sum : text == "max" ? Reduction::max : Reduction::min;
}

Tensor argument(Napi::Value value, const char* name, Held& held) {
  return tensor_argument(Arguments(value, name), name, held);
}

}  // namespace

UniqueId id_argument(const Arguments& from, const char* field) {
  UniqueId id;
  const Napi::Value value = from.get(field);
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array &&
              value.As<Napi::Uint8Array>().ElementLength() == id.bytes.size(),
          from.name(field), " must be the Uint8Array of ", id.bytes.size(), " bytes that uniqueId() gave");
  std::memcpy(id.bytes.data(), value.As<Napi::Uint8Array>().Data(), id.bytes.size());
  return id;
}

Napi::Function CommunicatorObject::define(Napi::Env env) {
  using Self = CommunicatorObject;
  return DefineClass(env, "Communicator",
                     {
                         InstanceAccessor<&Self::guard<&Self::disposed>>("disposed"),
                         InstanceMethod<&Self::guard<&Self::join>>("join"),
                         InstanceMethod<&Self::guard<&Self::broadcast>>("broadcast"),
                         InstanceMethod<&Self::guard<&Self::all_reduce>>("allReduce"),
                         InstanceMethod<&Self::guard<&Self::reduce_scatter>>("reduceScatter"),
                         InstanceMethod<&Self::guard<&Self::all_gather>>("allGather"),
                         InstanceMethod<&Self::guard<&Self::exchange>>("exchange"),
                         InstanceMethod<&Self::guard<&Self::barrier>>("barrier"),
                         InstanceMethod<&Self::guard<&Self::ring_attention>>("ringAttention"),
                         InstanceMethod<&Self::guard<&Self::ring_attention_backward>>("ringAttentionBackward"),
                         InstanceMethod<&Self::guard<&Self::abort>>("abort"),
                         InstanceMethod<&Self::guard<&Self::dispose>>("dispose"),
                     });
}

template <Napi::Value (CommunicatorObject::*method)(const Napi::CallbackInfo&)>
Napi::Value CommunicatorObject::guard(const Napi::CallbackInfo& info) {
  if (!info.This().As<Napi::Object>().CheckTypeTag(&kCommunicatorTag)) {
    throw Napi::TypeError::New(info.Env(), "Illegal invocation: the receiver is not a Communicator");
  }
  return guarded(info.Env(), [&] { return (this->*method)(info); });
}

CommunicatorObject::CommunicatorObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CommunicatorObject>(info) {
  guarded(info.Env(), [&] {
    const Arguments from(info[0], "options");
    CommunicatorOptions options;
    options.id = id_argument(from, "id");
    options.size = from.integer("size", 1, kMaxSharedMemoryRanks);
    options.rank = from.integer("rank", 0, options.size - 1);
    options.timeout = std::chrono::milliseconds(from.integer("timeout", 1, std::numeric_limits<int32_t>::max()));
    link_ = std::make_shared<Link>();
    link_->device = Engine::of(info.Env()).device();
    link_->comm = shared_memory().make(options);
    link_->wire = link_->device->stream();
    jobs_ = std::make_unique<Jobs>(info.Env(), "the communicator", [link = std::weak_ptr(link_)] {
      if (const auto held = link.lock()) held->comm->abort("its thread is ending");
    });
  });
  info.This().As<Napi::Object>().TypeTag(&kCommunicatorTag);
}

template <class Work>
Napi::Value CommunicatorObject::submit(Napi::Env env, std::shared_ptr<Held> held, Work work) {
  jobs_->check_open();
  held->keep(Value());
  // An abort() that somebody keeps does not keep the communicator.
  const auto on_abort = [link = std::weak_ptr(link_)] {
    if (const auto alive = link.lock()) alive->comm->abort("a call was aborted by its caller");
  };
  return jobs_->submit<Nothing>(
      env, std::move(held),
      [link = link_, work = std::move(work)](const std::atomic<bool>&) {
        const Drain drain{*link->wire};
        work(*link);
        link->wire->synchronize();
        return Nothing{};
      },
      on_abort);
}

Napi::Value CommunicatorObject::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !jobs_->open());
}

Napi::Value CommunicatorObject::join(const Napi::CallbackInfo& info) {
  return submit(info.Env(), std::make_shared<Held>(), [](Link& link) { link.comm->join(); });
}

Napi::Value CommunicatorObject::broadcast(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor x = argument(info[0], "x", *held);
  const double root = number_argument(info[1], "root", 0, kMaxSharedMemoryRanks);
  require(root == static_cast<int>(root), "root must be an integer, got ", root);
  return submit(info.Env(), held, [=](Link& link) { link.comm->broadcast(*link.wire, x, static_cast<int>(root)); });
}

Napi::Value CommunicatorObject::all_reduce(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor x = argument(info[0], "x", *held);
  const Reduction how = reduction_argument(info[1]);
  return submit(info.Env(), held, [=](Link& link) { link.comm->all_reduce(*link.wire, x, how); });
}

Napi::Value CommunicatorObject::reduce_scatter(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor from = argument(info[0], "from", *held), to = argument(info[1], "to", *held);
  const Reduction how = reduction_argument(info[2]);
  return submit(info.Env(), held, [=](Link& link) { link.comm->reduce_scatter(*link.wire, from, to, how); });
}

Napi::Value CommunicatorObject::all_gather(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor from = argument(info[0], "from", *held), to = argument(info[1], "to", *held);
  return submit(info.Env(), held, [=](Link& link) { link.comm->all_gather(*link.wire, from, to); });
}

Napi::Value CommunicatorObject::exchange(const Napi::CallbackInfo& info) {
  require(info[0].IsArray(), "transfers must be an array");
  const Napi::Array list = info[0].As<Napi::Array>();
  const auto held = std::make_shared<Held>();
  std::vector<Transfer> group;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Arguments from(list.Get(i), "transfers[" + std::to_string(i) + "]");
    group.push_back({from.boolean("send") ? Transfer::Way::send : Transfer::Way::receive,
                     from.integer("peer", 0, kMaxSharedMemoryRanks),
                     tensor_argument(from.object("tensor"), from.name("tensor"), *held)});
  }
  return submit(info.Env(), held, [=](Link& link) { link.comm->exchange(*link.wire, group); });
}

Napi::Value CommunicatorObject::barrier(const Napi::CallbackInfo& info) {
  return submit(info.Env(), std::make_shared<Held>(), [](Link& link) { link.comm->barrier(*link.wire); });
}

Napi::Value CommunicatorObject::ring_attention(const Napi::CallbackInfo& info) { return attend(info, false); }

Napi::Value CommunicatorObject::ring_attention_backward(const Napi::CallbackInfo& info) { return attend(info, true); }

Napi::Value CommunicatorObject::attend(const Napi::CallbackInfo& info, bool backward) {
  jobs_->check_open();
  Operands from(Arguments(info[0], "options"));
  const AttentionOperands x(from, backward, true);
  const std::string schedule = from.arguments().text("schedule");
  require(schedule == "ring" || schedule == "all_gather", "options.schedule must be \"ring\" or \"all_gather\", got \"",
          schedule, "\"");
  // Computes with the threads that the environment's other calls have.
  const std::shared_ptr<Device> device = Engine::of(info.Env()).device();
  const auto ring =
      std::make_shared<RingAttention>(device->ops(), *link_->comm, x.heads, shards_argument(from.arguments(), "shards"),
                                      schedule == "ring" ? ContextSchedule::ring : ContextSchedule::all_gather);
  require(ring->rows() == x.q.shape[0], "shards[", link_->comm->rank(), "] covers ", ring->rows(), " tokens, q has ",
          x.q.shape[0], " rows");
  return submit(info.Env(), from.held(), [=](Link& link) {
    const auto compute = device->stream();
    const Buffer memory(*device, backward ? ring->backward_workspace() : ring->forward_workspace());
    const Tensor room = tensor(memory.data(), DType::u8, {static_cast<int64_t>(memory.bytes())});
    const Drain first{*compute}, second{*link.wire};
    try {
      if (backward)
        ring->backward(*compute, *link.wire, x.dout, x.q, x.k, x.v, x.out, x.lse, x.dq, x.dk, x.dv, room);
      else
        ring->forward(*compute, *link.wire, x.q, x.k, x.v, x.out, x.lse, room);
      compute->synchronize();
    } catch (const std::exception& error) {
      link.comm->abort(error.what());  // or the others would wait for what this rank no longer sends
      throw;
    }
  });
}

Napi::Value CommunicatorObject::abort(const Napi::CallbackInfo& info) {
  jobs_->check_open();
  link_->comm->abort(text_argument(info[0], "reason"));
  return info.Env().Undefined();
}

Napi::Value CommunicatorObject::dispose(const Napi::CallbackInfo& info) {
  if (!jobs_->open()) return jobs_->close(info.Env(), nullptr, nullptr);
  if (!jobs_->idle()) link_->comm->abort("it was disposed");
  const auto held = std::make_shared<Held>();
  held->keep(Value());
  return jobs_->close(info.Env(), held, [link = std::exchange(link_, nullptr)]() mutable { link.reset(); });
}

Napi::Value unique_id(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const UniqueId id = shared_memory().make_id();
    Napi::Uint8Array bytes = Napi::Uint8Array::New(info.Env(), id.bytes.size());
    std::memcpy(bytes.Data(), id.bytes.data(), id.bytes.size());
    return bytes;
  });
}

}  // namespace tokenring::addon

#include "addon/communicator.h"

#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "addon/attention.h"
#include "addon/engine.h"
#include "addon/state.h"
#include "comm/nccl.h"
#include "cuda/device.h"
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
    const std::string device = from.has("device") ? from.text("device") : "cpu";
    require(device == "cpu" || device == "cuda", "options.device must be \"cpu\" or \"cuda\", got \"", device, "\"");
    const bool gpu = device == "cuda";
    options.size = from.integer("size", 1, gpu ? kMaxNcclRanks : kMaxSharedMemoryRanks);
    options.rank = from.integer("rank", 0, options.size - 1);
    options.timeout = std::chrono::milliseconds(from.integer("timeout", 1, std::numeric_limits<int32_t>::max()));
    link_ = std::make_shared<Link>();
    link_->gpu = gpu;
    link_->device = gpu ? std::shared_ptr<Device>(make_cuda_device()) : Engine::of(info.Env()).device();
    link_->comm = (gpu ? nccl_transport() : shared_memory()).make(options);
    link_->wire = link_->device->stream();
    jobs_ = std::make_unique<Jobs>(info.Env(), "the communicator", [link = std::weak_ptr(link_)] {
      if (const auto held = link.lock()) held->abort("its thread is ending");
    });
  });
  info.This().As<Napi::Object>().TypeTag(&kCommunicatorTag);
}

// The tensors of a call where the device sees them: themselves or, for a GPU, copies.
class CommunicatorObject::Staged {
 public:
  explicit Staged(Link& link) : link_(link) {}
  Tensor read(const Tensor& host) { return place(host, true, false); }
  Tensor written(const Tensor& host) { return place(host, false, true); }
  Tensor changed(const Tensor& host) { return place(host, true, true); }
  void copy_back() {
    for (const auto& [host, device] : written_) link_.wire->copy_to_host(host.data, device.data, host.bytes());
  }

 private:
  Tensor place(const Tensor& host, bool reads, bool writes) {
    if (!link_.gpu || host.bytes() == 0) return host;
    if (used_ == link_.rooms.size()) link_.rooms.emplace_back();
    Buffer& room = link_.rooms[used_++];
    if (room.bytes() < host.bytes()) {
      room = Buffer();
      room = Buffer(*link_.device, host.bytes(), "collectives");
    }
    Tensor device = host;
    device.data = room.data();
    if (reads) link_.wire->copy_to_device(device.data, host.data, host.bytes());
    if (writes) written_.push_back({host, device});
    return device;
  }
  Link& link_;
  size_t used_ = 0;
  std::vector<std::pair<Tensor, Tensor>> written_;
};

template <class Work>
Napi::Value CommunicatorObject::submit(Napi::Env env, std::shared_ptr<Held> held, Work work) {
  jobs_->check_open();
  require(!held->on_gpu(), "the communicator takes tensors in the host's memory; copy them there (copyTo)");
  held->keep(Value());
  // An abort() that somebody keeps does not keep the communicator.
  const auto on_abort = [link = std::weak_ptr(link_)] {
    if (const auto alive = link.lock()) alive->abort("a call was aborted by its caller");
  };
  return jobs_->submit<Nothing>(
      env, std::move(held),
      [link = link_, work = std::move(work)](const std::atomic<bool>&) {
        const Drain drain{*link->wire};
        Staged staged(*link);
        work(*link, staged);
        staged.copy_back();
        link->wire->synchronize();
        return Nothing{};
      },
      on_abort);
}

Napi::Value CommunicatorObject::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !jobs_->open());
}

Napi::Value CommunicatorObject::join(const Napi::CallbackInfo& info) {
  return submit(info.Env(), std::make_shared<Held>(), [](Link& link, Staged&) { link.comm->join(); });
}

Napi::Value CommunicatorObject::broadcast(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor x = argument(info[0], "x", *held);
  const double root = number_argument(info[1], "root", 0, kMaxNcclRanks);
  require(root == static_cast<int>(root), "root must be an integer, got ", root);
  return submit(info.Env(), held, [=](Link& link, Staged& staged) {
    link.comm->broadcast(*link.wire, staged.changed(x), static_cast<int>(root));
  });
}

Napi::Value CommunicatorObject::all_reduce(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor x = argument(info[0], "x", *held);
  const Reduction how = reduction_argument(info[1]);
  return submit(info.Env(), held,
                [=](Link& link, Staged& staged) { link.comm->all_reduce(*link.wire, staged.changed(x), how); });
}

Napi::Value CommunicatorObject::reduce_scatter(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor from = argument(info[0], "from", *held), to = argument(info[1], "to", *held);
  const Reduction how = reduction_argument(info[2]);
  return submit(info.Env(), held, [=](Link& link, Staged& staged) {
    link.comm->reduce_scatter(*link.wire, staged.read(from), staged.written(to), how);
  });
}

Napi::Value CommunicatorObject::all_gather(const Napi::CallbackInfo& info) {
  const auto held = std::make_shared<Held>();
  const Tensor from = argument(info[0], "from", *held), to = argument(info[1], "to", *held);
  return submit(info.Env(), held, [=](Link& link, Staged& staged) {
    link.comm->all_gather(*link.wire, staged.read(from), staged.written(to));
  });
}

Napi::Value CommunicatorObject::exchange(const Napi::CallbackInfo& info) {
  require(info[0].IsArray(), "transfers must be an array");
  const Napi::Array list = info[0].As<Napi::Array>();
  const auto held = std::make_shared<Held>();
  std::vector<Transfer> group;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Arguments from(list.Get(i), "transfers[" + std::to_string(i) + "]");
    group.push_back({from.boolean("send") ? Transfer::Way::send : Transfer::Way::receive,
                     from.integer("peer", 0, kMaxNcclRanks),
                     tensor_argument(from.object("tensor"), from.name("tensor"), *held)});
  }
  return submit(info.Env(), held, [=](Link& link, Staged& staged) {
    std::vector<Transfer> there = group;
    for (Transfer& one : there)
      one.tensor = one.way == Transfer::Way::send ? staged.read(one.tensor) : staged.written(one.tensor);
    link.comm->exchange(*link.wire, there);
  });
}

Napi::Value CommunicatorObject::barrier(const Napi::CallbackInfo& info) {
  return submit(info.Env(), std::make_shared<Held>(), [](Link& link, Staged&) { link.comm->barrier(*link.wire); });
}

Napi::Value CommunicatorObject::ring_attention(const Napi::CallbackInfo& info) { return attend(info, false); }

Napi::Value CommunicatorObject::ring_attention_backward(const Napi::CallbackInfo& info) { return attend(info, true); }

Napi::Value CommunicatorObject::attend(const Napi::CallbackInfo& info, bool backward) {
  jobs_->check_open();
  require(!link_->gpu, "this ring attention computes on the CPU; its communicator is of device \"cuda\"");
  Operands from(Arguments(info[0], "options"));
  const AttentionOperands x(from, backward, true);
  const std::string schedule = from.arguments().text("schedule");
  require(schedule == "ring" || schedule == "all_gather" || schedule == "two_level",
          "options.schedule must be \"ring\", \"all_gather\" or \"two_level\", got \"", schedule, "\"");
  std::shared_ptr<Link> node;
  if (schedule == "all_gather") node = link_;
  if (schedule == "two_level") {
    const Napi::Value value = from.arguments().get("node");
    require(value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&kCommunicatorTag),
            "options.node must be a Communicator: that of the ranks of this rank's node");
    CommunicatorObject* object = Unwrap(value.As<Napi::Object>());
    object->jobs_->check_open();
    node = object->link_;
    require(!node->gpu, "this ring attention computes on the CPU; options.node is of device \"cuda\"");
    from.held()->keep(value.As<Napi::Object>());
    link_->node = node;
  }
  // Computes with the threads that the environment's other calls have.
  const std::shared_ptr<Device> device = Engine::of(info.Env()).device();
  const auto ring = std::make_shared<RingAttention>(device->ops(), *link_->comm, node ? node->comm.get() : nullptr,
                                                    x.heads, shards_argument(from.arguments(), "shards"));
  require(ring->rows() == x.q.shape[0], "shards[", link_->comm->rank(), "] covers ", ring->rows(), " tokens, q has ",
          x.q.shape[0], " rows");
  return submit(info.Env(), from.held(), [=](Link& link, Staged&) {
    const auto compute = device->stream();
    Streams streams{compute.get()};
    streams[static_cast<size_t>(Track::context)] = link.wire.get();
    Executor executor(*device, streams);
    Schedule schedule;
    const auto slot = [](const Tensor& t) { return outside(t); };
    if (backward)
      ring->backward(schedule, -1, slot(x.dout), {slot(x.q)}, {slot(x.k)}, {slot(x.v)}, slot(x.out), slot(x.lse),
                     {slot(x.dq)}, {slot(x.dk)}, {slot(x.dv)});
    else
      ring->forward(schedule, -1, {slot(x.q)}, {slot(x.k)}, {slot(x.v)}, slot(x.out), slot(x.lse));
    const Drain first{*compute}, second{*link.wire};
    try {
      executor.run(schedule);
      compute->synchronize();
    } catch (const std::exception& error) {
      link.abort(error.what());  // or the others would wait for what this rank no longer sends
      throw;
    }
  });
}

Napi::Value CommunicatorObject::abort(const Napi::CallbackInfo& info) {
  jobs_->check_open();
  link_->abort(text_argument(info[0], "reason"));
  return info.Env().Undefined();
}

Napi::Value CommunicatorObject::dispose(const Napi::CallbackInfo& info) {
  if (!jobs_->open()) return jobs_->close(info.Env(), nullptr, nullptr);
  if (!jobs_->idle()) link_->abort("it was disposed");
  const auto held = std::make_shared<Held>();
  held->keep(Value());
  return jobs_->close(info.Env(), held, [link = std::exchange(link_, nullptr)]() mutable { link.reset(); });
}

Napi::Value unique_id(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::string kind = info[0].IsUndefined() ? "cpu" : text_argument(info[0], "kind");
    require(kind == "cpu" || kind == "cuda" || kind == "nccl", "kind must be \"cpu\", \"cuda\" or \"nccl\", got \"",
            kind, "\"");
    const UniqueId id = kind == "nccl"   ? nccl_unique_id()
                        : kind == "cuda" ? nccl_transport().make_id()
                                         : shared_memory().make_id();
    Napi::Uint8Array bytes = Napi::Uint8Array::New(info.Env(), id.bytes.size());
    std::memcpy(bytes.Data(), id.bytes.data(), id.bytes.size());
    return bytes;
  });
}

}  // namespace tokenring::addon

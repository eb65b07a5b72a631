// Checkpoints: round trips to the bit, 16-bit input, shards, and files that are not what they claim.
#include "io/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "core/convert.h"
#include "decoder_rig.h"
#include "folder.h"
#include "harness.h"
#include "io/json.h"
#include "model/checkpoint.h"

namespace tokenring {

namespace {

namespace fs = std::filesystem;

// A file of a header and `data` bytes of zeros.
void write_raw(const std::string& path, const std::string& header, size_t data) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i));
  spill(path, bytes + header + std::string(data, '\0'));
}

std::string loading(Rig& rig, const std::string& directory) {
  return failure_of([&] { load_parameters(rig.parameters, *rig.stream, directory); });
}

// A pattern of 16-bit formats as a one-tensor file.
std::vector<float> read_16(const Folder& folder, const char* dtype, const std::vector<uint16_t>& bits) {
  const std::string path = folder / "bits.safetensors";
  const std::string size = std::to_string(bits.size());
  write_raw(path,
            "{\"t\":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":[" + size + "],\"data_offsets\":[0," +
                std::to_string(2 * bits.size()) + "]}}",
            0);
  std::ofstream(path, std::ios::binary | std::ios::app)
      .write(reinterpret_cast<const char*>(bits.data()), static_cast<std::streamsize>(2 * bits.size()));
  const SafetensorsReader reader(path);
  reader.check("t", {static_cast<int64_t>(bits.size())});
  std::vector<float> out(bits.size());
  reader.read("t", out.data());
  return out;
}

}  // namespace

TEST(safetensors_f32_comes_back_to_the_bit) {
  for (const bool tied : {true, false}) {
    Folder folder;
    Rig rig(tiny_config(tied)), other(tiny_config(tied));
    rig.randomise(31);
    save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32);
    CHECK(loading(other, folder.path).empty());
    CHECK(other.read(other.parameters.master()) == rig.read(rig.parameters.master()));
    const PackedBatch batch = random_batch(tiny_config(tied), {20}, 1);
    CHECK(other.trainer.score(batch, 1.0f, other.never).logprob == rig.trainer.score(batch, 1.0f, rig.never).logprob);
    // Only the one file, under the names that Hugging Face gives: a tied head is not written.
    CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
    const SafetensorsReader reader(folder / "model.safetensors");
    CHECK(reader.entries().count("lm_head.weight") == (tied ? 0u : 1u));
    CHECK(reader.entries().at("model.layers.1.self_attn.k_proj.weight").shape == (std::vector<int64_t>{16, 32}));
    CHECK(reader.metadata().at("format") == "pt");
  }
}

TEST(safetensors_bf16_is_the_nearest) {
  Folder folder;
  Rig rig(tiny_config(true)), other(tiny_config(true));
  rig.randomise(32);
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::bf16);
  CHECK(loading(other, folder.path).empty());
  const std::vector<float> exact = rig.read(rig.parameters.master()), got = other.read(other.parameters.master());
  for (size_t i = 0; i < exact.size(); ++i) CHECK_NEAR(got[i], exact[i], std::abs(exact[i]) * 0x1.0p-8);
  CHECK(got != exact);
  save_parameters(other.parameters, *other.stream, folder.path, DType::bf16);  // over the old file
  CHECK(loading(rig, folder.path).empty());
  CHECK(rig.read(rig.parameters.master()) == got);
}

TEST(safetensors_16_bit_formats_are_read_exactly) {
  Folder folder;
  CHECK(read_16(folder, "BF16", {0x3F80, 0xC040, 0x0000, 0x0001, 0x7F80}) ==
        (std::vector<float>{1, -3, 0, 0x1.0p-133f, INFINITY}));
  CHECK(read_16(folder, "F16", {0x3C00, 0xC200, 0x0001, 0x83FF, 0x7BFF, 0xFC00}) ==
        (std::vector<float>{1, -3, 0x1.0p-24f, -1023 * 0x1.0p-24f, 65504, -INFINITY}));
  CHECK(std::isnan(read_16(folder, "F16", {0x7E00})[0]));
  CHECK(bf16_of_f32(1.00390625f) == 0x3F80);  // a tie goes to the even neighbour
  CHECK(bf16_of_f32(1.01171875f) == 0x3F82);
  CHECK(bf16_of_f32(3.4e38f) == 0x7F80);
  CHECK(std::isnan(f32_of_bf16(bf16_of_f32(std::bit_cast<float>(0x7F800001u)))));
}

TEST(safetensors_optimiser_state_continues_to_the_bit) {
  Folder folder;
  Rig rig(tiny_config(true)), other(tiny_config(true));
  rig.randomise(33);
  const PackedBatch batch = random_batch(tiny_config(true), {30, 30}, 2);
  const auto step = [&](Rig& at) {
    at.trainer.accumulate(batch, PolicyLoss{}, at.never);
    return at.trainer.optimise({1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 1.0f}).step;
  };
  step(rig);
  step(rig);
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32);
  save_optimiser(rig.parameters, *rig.stream, folder.path);
  load_parameters(other.parameters, *other.stream, folder.path);
  load_optimiser(other.parameters, *other.stream, folder.path);
  CHECK(step(rig) == 3 && step(other) == 3);
  CHECK(other.read(other.parameters.master()) == rig.read(rig.parameters.master()));

  load_parameters(other.parameters, *other.stream, folder.path);  // without the moments: a fresh optimiser
  CHECK(step(other) == 1);
}

TEST(safetensors_shards_are_found_through_the_index) {
  Folder folder;
  Rig rig(tiny_config(false)), other(tiny_config(false));
  rig.randomise(34);
  const std::vector<float> master = rig.read(rig.parameters.master());
  const std::vector<NamedSlice>& slices = rig.parameters.slices();
  std::string map;
  for (int shard = 0; shard < 2; ++shard) {
    const std::string file = "model-0000" + std::to_string(shard + 1) + "-of-00002.safetensors";
    std::vector<SafetensorsTensor> tensors;
    for (size_t i = shard; i < slices.size(); i += 2) {
      tensors.push_back({slices[i].name, DType::f32, slices[i].shape});
      if (!map.empty()) map += ',';
      map += quote_json(slices[i].name) + ": \"" + file + "\"";
    }
    SafetensorsWriter writer(folder / file.c_str(), tensors, {});
    for (size_t i = shard; i < slices.size(); i += 2) writer.append(master.data() + slices[i].offset);
    writer.commit();
  }
  const std::string index = folder / "model.safetensors.index.json";
  spill(index, "{\"metadata\": {\"total_size\": 1e3}, \"weight_map\": {" + map + "}}");
  CHECK(loading(other, folder.path).empty());
  CHECK(other.read(other.parameters.master()) == master);

  spill(index, "{\"weight_map\": {\"lm_head.weight\": \"../elsewhere.safetensors\"}}");
  CHECK(contains(loading(other, folder.path), "lm_head.weight is not mapped to a file of this directory"));
  spill(index, "{\"weight_map\": {\"nothing\": \"model-00001-of-00002.safetensors\"}}");
  CHECK(contains(loading(other, folder.path), "does not hold tensor nothing"));
  spill(index, "{\"weight_map\": {\"a\": \"absent.safetensors\"}}");
  CHECK(contains(loading(other, folder.path), "absent.safetensors: cannot be opened"));
  spill(index, "{\"weight_map\": {]}");
  CHECK(contains(loading(other, folder.path), "not valid JSON: expected a string at byte 16"));
}

TEST(safetensors_shards_are_written_above_a_size) {
  Folder folder;
  Rig rig(tiny_config(false)), other(tiny_config(false));
  rig.randomise(37);
  const auto files = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder.path)) names.insert(entry.path().filename().string());
    return names;
  };
  const auto comes_back = [&] {
    CHECK(loading(other, folder.path).empty());
    CHECK(other.read(other.parameters.master()) == rig.read(rig.parameters.master()));
  };
  // Largest tensor: 48 x 32 in f32. Every shard holds at most three of them, and all tensors are somewhere.
  const int64_t limit = 3 * 48 * 32 * 4;
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32, limit);
  comes_back();
  const std::set<std::string> first = files();
  CHECK(first.size() > 3 && first.count("model.safetensors.index.json") == 1 && first.count("model.safetensors") == 0);
  size_t tensors = 0;
  uintmax_t bytes = 0;
  for (const std::string& name : first) {
    if (name == "model.safetensors.index.json") continue;
    const SafetensorsReader reader(folder / name.c_str());
    CHECK(name.find("-of-0000" + std::to_string(first.size() - 1)) != std::string::npos);
    uintmax_t held = 0;
    for (const auto& [tensor, entry] : reader.entries()) held += entry.end - entry.begin;
    CHECK(held <= static_cast<uintmax_t>(limit) && held > 0);
    tensors += reader.entries().size();
    bytes += held;
  }
  CHECK(tensors == rig.parameters.slices().size());
  const Json index = parse_json(slurp(folder / "model.safetensors.index.json"), "index");
  CHECK(index.find("metadata")->find("total_size")->number == static_cast<double>(bytes));
  CHECK(index.find("weight_map")->object.size() == tensors);

  // Fewer shards, one file, shards again: nothing of the earlier save stays to be read instead.
  spill(folder / "model-notes.safetensors", "kept");
  rig.randomise(38);
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32, 4 * limit);
  comes_back();
  CHECK(files().size() < first.size());
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32);
  CHECK(files() == (std::set<std::string>{"model.safetensors", "model-notes.safetensors"}));
  rig.randomise(39);
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32, 1);  // a file for each tensor
  comes_back();
  CHECK(files().size() == tensors + 2 && files().count("model.safetensors") == 0);
  CHECK(contains(failure_of([&] { save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32, 0); }),
                 "shard_bytes is 0"));
}

TEST(safetensors_a_tied_head_must_be_the_embedding) {
  Folder folder;
  Rig untied(tiny_config(false)), tied(tiny_config(true));
  untied.randomise(40);
  save_parameters(untied.parameters, *untied.stream, folder.path, DType::bf16);
  CHECK(contains(loading(tied, folder.path), "lm_head.weight is not model.embed_tokens.weight"));
  std::vector<float> weights = untied.read(untied.parameters.master());
  const NamedSlice &table = untied.parameters.slices().front(), &head = untied.parameters.slices().back();
  CHECK(head.name == "lm_head.weight");
  std::copy_n(weights.begin() + table.offset, table.elements(), weights.begin() + head.offset);
  untied.write(untied.parameters.master(), weights);
  save_parameters(untied.parameters, *untied.stream, folder.path, DType::bf16);
  CHECK(loading(tied, folder.path).empty());
}

TEST(safetensors_truncated_at_any_byte_is_refused) {
  Folder folder;
  Rig rig(tiny_config(true));
  rig.randomise(35);
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::bf16);
  const std::string path = folder / "model.safetensors", whole = slurp(path);
  const std::vector<float> before = rig.read(rig.parameters.master());
  const int64_t version = rig.parameters.version();
  for (const size_t bytes : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    spill(path, whole.substr(0, bytes));
    const std::string message = loading(rig, folder.path);
    CHECK(contains(message, "CHECKPOINT") && contains(message, "truncated") && contains(message, path));
  }
  CHECK(rig.read(rig.parameters.master()) == before && rig.parameters.version() == version);
  fs::remove(path);
  CHECK(contains(loading(rig, folder.path), "holds neither model.safetensors nor"));
}

TEST(safetensors_another_models_checkpoint_is_refused) {
  Folder folder;
  Rig rig(tiny_config(true));
  rig.randomise(36);
  save_parameters(rig.parameters, *rig.stream, folder.path, DType::f32);

  Rig untied(tiny_config(false));
  CHECK(contains(loading(untied, folder.path), "lm_head.weight is missing; if the checkpoint ties it"));
  DecoderConfig config = tiny_config(true);
  config.intermediate_size = 52;
  Rig wider(config);
  CHECK(contains(loading(wider, folder.path), "mlp.gate_proj.weight has shape [48, 32] but the model needs [52, 32]"));
  config = tiny_config(true);
  config.num_hidden_layers = 1;
  Rig shallow(config);
  CHECK(contains(loading(shallow, folder.path), "model.layers.1.") &&
        contains(loading(shallow, folder.path), "has no place in the model"));
  CHECK(contains(failure_of([&] { load_optimiser(rig.parameters, *rig.stream, folder.path); }),
                 "optimizer.safetensors: cannot be opened"));
  CHECK(contains(failure_of([&] { save_parameters(rig.parameters, *rig.stream, folder / "no/where", DType::f32); }),
                 "CHECKPOINT"));
}

TEST(safetensors_headers_that_lie_are_refused) {
  Folder folder;
  const std::string path = folder / "x.safetensors";
  const auto message = [&](const std::string& header, size_t data = 16) {
    write_raw(path, header, data);
    return failure_of([&] { SafetensorsReader reader(path); });
  };
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "{\"t\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  };
  CHECK(message(tensor("F32", "[2,2]", "[0,16]")).empty());
  CHECK(message(tensor("F32", "[]", "[0,4]")).empty());
  CHECK(contains(message(tensor("F31", "[2,2]", "[0,16]")), "tensor t has the unknown dtype F31"));
  CHECK(contains(message(tensor("F32", "[2,2]", "[0,20]")), "do not hold F32 [2, 2]"));
  CHECK(contains(message(tensor("F32", "[2,2]", "[16,0]")), "do not hold"));
  CHECK(contains(message(tensor("F32", "[2,2]", "[4,20]")), "truncated: tensor t ends at byte 20"));
  CHECK(contains(message(tensor("F32", "[4294967296,4294967296]", "[0,16]")), "do not hold"));
  CHECK(contains(message(tensor("F32", "[-1]", "[0,16]")), "not a list of whole numbers"));
  CHECK(contains(message(tensor("F32", "[2,2]", "[0]")), "lacks its dtype, shape or two data_offsets"));
  CHECK(contains(message("[1]"), "no JSON object"));
  CHECK(contains(message(std::string(1000, '[')), "less nesting"));
  CHECK(contains(message("{\"t\":{\"dtype\":\"F32"), "expected the end of the string"));
  spill(path, std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + "{}");
  CHECK(contains(failure_of([&] { SafetensorsReader reader(path); }), "is no safetensors file"));
  spill(path, std::string("\x00\x10\x00\x00\x00\x00\x00\x00", 8) + "{}");
  CHECK(contains(failure_of([&] { SafetensorsReader reader(path); }), "truncated: the header claims 4096 bytes"));

  write_raw(path, tensor("I64", "[2]", "[0,16]"), 16);
  const SafetensorsReader reader(path);
  CHECK(contains(failure_of([&] { reader.check("t", {2}); }), "tensor t is I64; only F32, BF16 and F16"));
  CHECK(contains(failure_of([&] { reader.check("u", {2}); }), "there is no tensor u"));
}

TEST(safetensors_an_unfinished_file_never_takes_the_name) {
  Folder folder;
  const std::string path = folder / "x.safetensors";
  const std::vector<float> values = {1, 2};
  {
    SafetensorsWriter writer(path, {{"a", DType::f32, {2}}, {"b", DType::f32, {2}}}, {});
    writer.append(values.data());
    CHECK(contains(failure_of([&] { writer.commit(); }), "tensor b was not written"));
  }
  CHECK(fs::is_empty(folder.path));
}

TEST(safetensors_json_strings_survive) {
  const std::string text = "a\"b\\c\n\x01é";
  CHECK(parse_json(quote_json(text), "test").string == text);
  CHECK(parse_json("\"\\u00e9\\u20AC\\ud83d\\ude00\\/\\t\"", "test").string == "é€😀/\t");
  const Json json = parse_json(" {\"a\" : [1, -2.5e3, true, null, \"x\"], \"b\": {}} ", "test");
  CHECK(json.find("a")->array.size() == 5 && json.find("a")->array[1].number == -2500);
  CHECK(json.find("b")->object.empty() && !json.find("c"));
  for (const char* bad : {"", "{", "[1,]", "{\"a\":1,}", "tru", "\"\\x\"", "\"\\ud83d\"", "1 2", "{a:1}", "nan"}) {
    CHECK(contains(failure_of([&] { parse_json(bad, "test"); }), "test: not valid JSON"));
  }
}

}  // namespace tokenring

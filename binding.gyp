# The core library (no N-API in it); the addon and the table of ops as C functions around it; its C++ tests; the
# emulated GPU for programs that know nothing of it, the tests' stand-in for NCCL; and the program that starts sandboxes.
# Run through `npm run build`; "gypfile": false in package.json keeps npm from building on install.
{
  "target_defaults": {
    "default_configuration": "Release",
    # -ffp-contract=off and no -march=native: the same bits on every machine; wide instructions are chosen at run time.
    "cflags": ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread", "-fPIC"],
    "cflags!": ["-fno-omit-frame-pointer", "-Wno-unused-parameter"],
    "cflags_cc": ["-std=c++20", "-fvisibility-inlines-hidden", "-fexceptions", "-frtti"],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-rtti", "-fno-exceptions"],
    "include_dirs": ["native"],
  },
  "targets": [
    {
      "target_name": "tokenring_core",
      "type": "static_library",
      # Not a thin archive: it holds its objects.
      "standalone_static_library": 1,
      "sources": [
        "<!@(node scripts/native-sources.mjs native/core native/cpu native/cuda native/comm native/loss native/optim native/io native/parallel native/model)"
      ],
    },
    {
      "target_name": "tokenring",
      "type": "loadable_module",
      "sources": ["<!@(node scripts/native-sources.mjs native/addon)"],
      "dependencies": [
        "tokenring_core",
        "<!(node -p \"require('node-addon-api').targets\"):node_addon_api_except_all",
      ],
      "defines": [
        "NAPI_VERSION=9",
        "NODE_ADDON_API_DISABLE_DEPRECATED",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "NODE_API_NO_EXTERNAL_BUFFERS_ALLOWED",
      ],
      "libraries": ["-ldl", "-pthread"],
      "ldflags": ["-Wl,--exclude-libs,ALL"],
    },
    {
      # build/Release/tokenring_ops.so
      "target_name": "tokenring_ops",
      "type": "shared_library",
      "product_prefix": "",
      "product_dir": "<(PRODUCT_DIR)",
      "sources": ["<!@(node scripts/native-sources.mjs native/capi)"],
      "dependencies": ["tokenring_core"],
      "libraries": ["-ldl", "-pthread"],
      "ldflags": ["-Wl,--exclude-libs,ALL"],
    },
    {
      "target_name": "tokenring_emulated",
      "type": "shared_library",
      "product_prefix": "",
      "product_dir": "<(PRODUCT_DIR)",
      "sources": [
        "<!@(node scripts/native-sources.mjs test/native/emulated)",
        "test/native/cuda_emulator.cc",
        "test/native/cuda_emulator_async.cc",
        "test/native/cuda_emulator_gemm.cc",
        "test/native/cuda_emulator_graphs.cc",
        "test/native/cuda_emulator_runtime.cc",
        "test/native/cuda_emulator_wgmma.cc",
      ],
      "include_dirs": ["cuda"],
      "cflags": ["-Wno-psabi"],
      "dependencies": ["tokenring_core"],
      "libraries": ["-ldl", "-pthread"],
      "ldflags": ["-Wl,--exclude-libs,ALL"],
    },
    {
      "target_name": "tokenring_test",
      "type": "executable",
      "sources": ["<!@(node scripts/native-sources.mjs test/native)"],
      # Remarks that arguments as aligned as tensor maps were passed otherwise before GCC 4.6.
      "cflags": ["-Wno-psabi"],
      "dependencies": ["tokenring_core"],
      "libraries": ["-ldl", "-pthread"],
      "ldflags": ["-pthread"],
    },
    {
      # The tests' stand-in for NCCL, loaded by them as the real one would be.
      "target_name": "tokenring_nccl_double",
      "type": "loadable_module",
      "sources": ["<!@(node scripts/native-sources.mjs test/native/nccl_double)"],
      "libraries": ["-ldl", "-lrt", "-pthread"],
    },
    {
      "target_name": "tokenring_sandbox",
      "type": "executable",
      "sources": ["<!@(node scripts/native-sources.mjs native/sandbox)"],
    },
  ],
}

"""tokenring's table of ops on a device, by the C functions of tokenring_ops.so; arguments are torch tensors.

The library lists its functions and their types itself (native/capi/functions.h), so nothing is declared here twice.
"""

import ctypes
import os
from pathlib import Path

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int32: 3, torch.uint8: 4}


class TensorArgument(ctypes.Structure):
    """Tensor of native/core/tensor.h, which asserts this layout."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_uint8),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
    ]


LETTERS = {
    "p": ctypes.c_void_p,
    "s": ctypes.c_char_p,
    "i": ctypes.c_int32,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
    "T": TensorArgument,
}


class Fault(Exception):
    """A Failure of the library: its code, what was wrong and what to do."""


class Library:
    def __init__(self, path):
        self.path = Path(path)
        if not self.path.exists():
            raise Fault(f"there is no {self.path}; npm run gpu:bundle makes the archive that holds it")
        self.native = ctypes.CDLL(str(self.path))
        self.native.tokenring_error.restype = self.native.tokenring_functions.restype = ctypes.c_char_p
        self.types = {}
        for line in self.native.tokenring_functions().decode().split("\n"):
            if line:
                name, letters = line.split(" ")
                self.types[name] = letters
                function = getattr(self.native, "tokenring_" + name)
                function.argtypes = [LETTERS[letter] for letter in letters]
                function.restype = ctypes.c_int

    def call(self, name, *arguments):
        if getattr(self.native, "tokenring_" + name)(*arguments) != 0:
            raise Fault(self.native.tokenring_error().decode())


class Array:
    """A tensor on the device: a torch tensor, or, on an emulated GPU, memory of the library's own."""

    def __init__(self, device, tensor, pointer=None):
        self.device, self.tensor, self.own = device, tensor, pointer
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)

    @property
    def pointer(self):
        return self.own if self.own is not None else self.tensor.data_ptr()

    def argument(self):
        shape = self.shape if len(self.shape) <= 4 else None
        return TensorArgument(self.pointer, DTYPES[self.dtype], len(shape), (ctypes.c_int64 * 4)(*shape))

    def columns(self, first):
        """The same rows from element `first` of each on, as an argument: heads within rows that hold more."""
        argument = self.argument()
        argument.data = self.pointer + first * self.dtype.itemsize
        return argument

    def get(self):
        """A copy in host memory."""
        if self.own is None:
            self.device.call("synchronize", self.device.engine)
            return self.tensor.detach().to("cpu", copy=True)
        host = torch.empty(self.shape, dtype=self.dtype)
        self.device.call("copy_to_host", self.device.engine, host.data_ptr(), self.own, host.nbytes)
        return host

    def __del__(self):
        if self.own is not None and self.device.engine is not None:
            self.device.call("free", self.device.engine, self.own)


class Device:
    """An engine with one stream. `kind` is "cpu", "cuda", or "emulated" where torch has no GPU but the library does."""

    def __init__(self, library, name, threads=0):
        self.library, self.engine = library, None
        handle = ctypes.c_void_p()
        library.call("open", name.encode(), threads, ctypes.addressof(handle))
        self.engine = handle.value
        self.kind = name if name == "cpu" or torch.cuda.is_available() else "emulated"
        self.act = torch.float32 if self.number("activation", ctypes.c_int32) == 0 else torch.bfloat16
        text = ctypes.create_string_buffer(512)
        self.call("device_name", self.engine, ctypes.addressof(text), 512)
        self.name = text.value.decode()
        if self.kind == "cuda":
            # What torch computes is ordered with what the library does.
            stream = self.number("stream_handle", ctypes.c_uint64)
            torch.cuda.set_stream(torch.cuda.ExternalStream(stream))

    @property
    def place(self):
        """Where torch computes references and peers."""
        return "cuda" if self.kind == "cuda" else "cpu"

    def call(self, name, *arguments):
        self.library.call(name, *arguments)

    def number(self, name, kind, *arguments):
        """The number that a function writes through its last argument."""
        value = kind()
        self.prepare(name, *arguments, ctypes.addressof(value))()
        return value.value

    def put(self, tensor):
        """A copy of a torch tensor on the device."""
        tensor = tensor.detach().contiguous()
        if self.kind != "emulated":
            return Array(self, tensor.to(self.place, copy=True))
        pointer = self.number("allocate", ctypes.c_void_p, max(tensor.nbytes, 1))
        self.call("copy_to_device", self.engine, pointer, tensor.data_ptr(), tensor.nbytes)
        return Array(self, tensor, pointer)

    def wrap(self, tensor):
        """The memory of a torch tensor that lies on the device already."""
        return Array(self, tensor)

    def empty(self, shape, dtype):
        """Memory that holds NaN, or -1, so that what is not written shows."""
        value = float("nan") if dtype.is_floating_point else -1
        if dtype == torch.uint8:
            value = 255
        return self.put(torch.full(shape, value, dtype=dtype))

    def zeros(self, shape, dtype):
        return self.put(torch.zeros(shape, dtype=dtype))

    def prepare(self, name, *arguments):
        """A function that does the op once: arguments are made ready once, so that a call costs little."""
        letters = self.library.types[name]
        given = [self.engine, *arguments]
        if len(given) != len(letters):
            raise TypeError(f"{name} takes {len(letters)} arguments ({letters}), got {len(given)}")
        made, kept = [], list(arguments)
        for letter, value in zip(letters, given):
            if isinstance(value, Array):
                value = value.argument() if letter == "T" else value.pointer
            elif isinstance(value, torch.Tensor):  # a list of the host
                value = value.to(torch.int32).contiguous()
                kept.append(value)
                value = value.data_ptr()
            elif value is None and letter == "T":
                value = TensorArgument()
            elif isinstance(value, bool):
                value = int(value)
            made.append(value)
        function = getattr(self.library.native, "tokenring_" + name)

        def run(_kept=kept):
            if function(*made) != 0:
                raise Fault(self.library.native.tokenring_error().decode())

        return run

    def run(self, name, *arguments):
        """Does the op once and waits, so that its arguments may go."""
        self.prepare(name, *arguments)()
        self.call("synchronize", self.engine)

    def workspace(self, bytes_):
        return self.empty((max(bytes_, 1),), torch.uint8)

    def weight(self, master):
        """The copy of a float32 matrix that products read: as (n, k, memory), the arguments of the linear ops."""
        n, k = master.shape
        bytes_ = self.number("weight_bytes", ctypes.c_int64, n, k)
        memory = self.workspace(bytes_)
        self.run("prepare_weight", self.put(master.float()), memory)
        return n, k, memory

    def close(self):
        if self.engine is not None:
            engine, self.engine = self.engine, None
            self.call("close", engine)


def tiles_of(lengths):
    """Packed documents, each attending to itself, as the ops of attention take them: [n, 6]."""
    rows, row = [], 0
    for length in lengths:
        rows.append([row, length, 0, row, length, 0])
        row += length
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, 6)


def find_library():
    """$TOKENRING_OPS, else that of the bundle or checkout around this file."""
    named = os.environ.get("TOKENRING_OPS")
    return Path(named) if named else Path(__file__).resolve().parent.parent / "build" / "Release" / "tokenring_ops.so"

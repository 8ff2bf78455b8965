"""Asks a SavedModel through TensorFlow's C library; needs nothing but Python's own modules.

    python -I -S c_api.py LIBRARY VERSION

Each line of the standard input is a request, `{"inputs": {tensor name: [type, shape, values]},
"outputs": [tensor name]}`; each line of the output its answer, `{"outputs": [[shape, values]],
"kilobytes": memory of this process}` or `{"error": message}`. Values are flat, and a string has one
character for each byte.
"""

import ctypes
import json
import math
import sys

TYPES = {
    "float32": (1, ctypes.c_float),
    "int32": (3, ctypes.c_int32),
    "string": (7, None),
    "bool": (10, ctypes.c_bool),
}
NUMBERS = dict(TYPES.values())
STRING = 7
STRING_BYTES = 24

RETURNS_POINTER = (
    "TF_NewStatus", "TF_NewSessionOptions", "TF_NewGraph", "TF_LoadSessionFromSavedModel",
    "TF_AllocateTensor", "TF_TensorData", "TF_GraphOperationByName", "TF_StringGetDataPointer",
)  # fmt: skip


class Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Session:
    """A loaded version."""

    def __init__(self, library: str, version: str) -> None:
        self._c = ctypes.CDLL(library)
        for name in RETURNS_POINTER:
            getattr(self._c, name).restype = ctypes.c_void_p
        self._c.TF_Message.restype = ctypes.c_char_p
        for name in ("TF_Dim", "TF_StringGetSize"):
            getattr(self._c, name).restype = ctypes.c_int64
        self._status = self._pointer("TF_NewStatus")
        self._graph = self._pointer("TF_NewGraph")
        self._session = self._pointer(
            "TF_LoadSessionFromSavedModel", self._pointer("TF_NewSessionOptions"), None,
            version.encode(), (ctypes.c_char_p * 1)(b"serve"), 1, self._graph, None, self._status,
        )  # fmt: skip
        self._check()

    def run(self, inputs: dict, outputs: list) -> list:
        """{name: (type, shape, values)}, [name] -> [(shape, values)]."""
        feeds = [self._tensor(*value) for value in inputs.values()]
        fetched = (ctypes.c_void_p * len(outputs))()
        self._c.TF_SessionRun(
            self._session, None,
            self._places(inputs), (ctypes.c_void_p * len(feeds))(*(f.value for f in feeds)),
            len(feeds), self._places(outputs), fetched, len(outputs), None, 0, None, self._status,
        )  # fmt: skip
        for feed, (kind, _, values) in zip(feeds, inputs.values(), strict=True):
            # Deleting a tensor that was allocated here frees its memory and not its strings'.
            for place in self._strings(feed, len(values) if kind == "string" else 0):
                self._c.TF_StringDealloc(place)
            self._c.TF_DeleteTensor(feed)
        self._check()
        tensors = [ctypes.c_void_p(pointer) for pointer in fetched]
        values = [self._values(tensor) for tensor in tensors]
        for tensor in tensors:
            self._c.TF_DeleteTensor(tensor)
        return values

    def _pointer(self, function: str, *arguments: object) -> ctypes.c_void_p:
        return ctypes.c_void_p(getattr(self._c, function)(*arguments))

    def _check(self) -> None:
        if self._c.TF_GetCode(self._status):
            raise RuntimeError(self._c.TF_Message(self._status).decode())

    def _places(self, names: object) -> ctypes.Array:
        places = []
        for name in names:
            operation, index = name.split(":")
            pointer = self._pointer("TF_GraphOperationByName", self._graph, operation.encode())
            assert pointer, f"the graph has no {operation}"
            places.append(Output(pointer, int(index)))
        return (Output * len(places))(*places)

    def _tensor(self, kind: str, shape: list, values: list) -> ctypes.c_void_p:
        code, number = TYPES[kind]
        size = STRING_BYTES if code == STRING else ctypes.sizeof(number)
        dims = (ctypes.c_int64 * len(shape))(*shape)
        nbytes = ctypes.c_size_t(size * len(values))
        tensor = self._pointer("TF_AllocateTensor", code, dims, len(shape), nbytes)
        data = self._c.TF_TensorData(tensor)
        if code == STRING:
            for place, value in zip(self._strings(tensor, len(values)), values, strict=True):
                content = value.encode("latin-1")
                self._c.TF_StringInit(place)
                self._c.TF_StringCopy(place, content, ctypes.c_size_t(len(content)))
        elif values:
            ctypes.memmove(data, (number * len(values))(*values), size * len(values))
        return tensor

    def _strings(self, tensor: ctypes.c_void_p, count: int) -> list:
        data = self._c.TF_TensorData(tensor)
        return [ctypes.c_void_p(data + i * STRING_BYTES) for i in range(count)]

    def _values(self, tensor: ctypes.c_void_p) -> tuple:
        shape = [self._c.TF_Dim(tensor, i) for i in range(self._c.TF_NumDims(tensor))]
        code, count = self._c.TF_TensorType(tensor), math.prod(shape)
        data = self._c.TF_TensorData(tensor)
        if not count:
            return shape, []
        if code != STRING:
            return shape, list((NUMBERS[code] * count).from_address(data))
        return shape, [
            ctypes.string_at(
                self._c.TF_StringGetDataPointer(place), self._c.TF_StringGetSize(place)
            ).decode("latin-1")
            for place in self._strings(tensor, count)
        ]


def kilobytes() -> int:
    with open("/proc/self/status") as status:
        return int(status.read().split("VmRSS:")[1].split()[0])


def main() -> None:
    session = Session(*sys.argv[1:])
    for line in sys.stdin:
        try:
            answer = {"outputs": session.run(**json.loads(line)), "kilobytes": kilobytes()}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    present = {"tensorflow", "keras", "keras_gpt2", "numpy"} & set(sys.modules)
    assert not present, present


if __name__ == "__main__":
    main()

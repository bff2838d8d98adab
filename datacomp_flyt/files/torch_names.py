"""Names in pickles of `torch.save` that are known to hold only data."""

from __future__ import annotations

import re

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
DTYPE = re.compile(r"torch\.(?:bool|(?:bfloat|float|u?int|qu?int|bits|complex)\d\w*)")

DICTS = ("collections.OrderedDict", "collections.defaultdict")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
TENSORS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
NO_PLAIN_TENSORS = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the device 'meta', without numbers",
    "torch._utils._rebuild_device_tensor_from_numpy": "of a device that torch keeps as NumPy's",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of a device of its own",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
}
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")

_MODULES_OF_DATA = {
    "builtins": "set frozenset complex bytearray bytes slice range object list dict tuple int "
    "float str bool",
    "collections": "OrderedDict defaultdict deque Counter",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "pathlib": "Path PurePath PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PurePath PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID",
    "_codecs": "encode",
    "copyreg": "_reconstructor",
    "numpy": "ndarray dtype bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128 str_ bytes_ datetime64 timedelta64",
    **{f"numpy.{core}.multiarray": "scalar _reconstruct" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric": "_frombuffer" for core in ("core", "_core")},
    "torch": "Size device Tensor strided per_tensor_affine per_channel_affine "
    "per_channel_affine_float_qparams " + " ".join(STORAGES),
    "torch.cuda": " ".join(STORAGES),
    "torch.storage": "UntypedStorage",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
}
_DATA = {f"{module}.{name}" for module, names in _MODULES_OF_DATA.items() for name in names.split()}
KNOWN = {
    *_DATA, *DICTS, *PARAMETERS, *TENSORS, *NO_PLAIN_TENSORS, SUBCLASS, *TENSOR_CLASSES,
}  # fmt: skip

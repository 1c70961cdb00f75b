"""SmolLM2's first layers: a model with the real one's tokenizer, embedding and kernels that takes a fraction of its time."""

from __future__ import annotations

from pathlib import Path

import gguf


def shortened(file: Path, num_layers: int, out: Path) -> Path:
    """Writes the GGUF file of the first layers of `file`'s model, whose tensors stay as they are. Returns `out`."""
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":  # which the writer has by itself
            continue
        value = num_layers if name == f"{architecture}.block_count" else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        kind, _, rest = tensor.name.partition(".")
        if kind != "blk" or int(rest.partition(".")[0]) < num_layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out

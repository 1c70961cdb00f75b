"""ggml's types of quantized tensors: for each the weight format that holds its blocks exactly."""

from __future__ import annotations

from collections.abc import Mapping

from cupola.targets.formats.format import WeightFormat

GGML_FORMATS: Mapping[str, WeightFormat] = {
    name: WeightFormat.parse(form)
    for name, form in {
        "Q4_0": "w4g32",
        "Q4_1": "w4g32m",
        "Q5_0": "w5g32",
        "Q5_1": "w5g32m",
        "Q8_0": "w8g32",
        "Q2_K": "w2g16m-s4x256",
        "Q3_K": "w3g16-s6x256",
        "Q4_K": "w4g32m-s6x256",
        "Q5_K": "w5g32m-s6x256",
        "Q6_K": "w6g16-s8x256",
        "IQ4_NL": "w4g32-iq4nl",
        "IQ4_XS": "w4g32-iq4nl-s6x256",
        "MXFP4": "w4g32-e2m1-bf16",
        # Ternary and binary ones, in codes of 2 bits.
        "TQ1_0": "w2g256",
        "TQ2_0": "w2g256",
        "Q1_0": "w2g128",
        # Places in lattices, as the numbers that stand there.
        "IQ3_S": "w4g32-iq3s-s6x256",
        "IQ3_XXS": "w4g32-iq3xxs-s6x256",
        "IQ2_S": "w3g16-iq2-s6x256",
        "IQ2_XS": "w3g16-iq2-s6x256",
        "IQ2_XXS": "w3g32-iq2-s6x256",
        "IQ1_M": "w3g16-iq1-s6x256",
        "IQ1_S": "w3g32-iq1-s6x256",
    }.items()
}

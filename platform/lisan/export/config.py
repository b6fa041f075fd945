"""Configuration of `export_model`, and the tolerance of each format."""

from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig

INT4_GROUPS = (32, 64, 128)
"Group sizes that vLLM's GPU kernel (Marlin) supports; each is a multiple of 32, which its CPU kernel needs."


class GgufType(StrEnum):
    float32 = "float32"
    float16 = "float16"
    "Ten bits of mantissa: exact for most bfloat16 weights, and fast everywhere."
    bfloat16 = "bfloat16"
    q8_0 = "q8_0"
    "Blocks of 32 weights in 8 bits with one scale: half the size of float16."


class Format(StrEnum):
    hf = "hf"
    adapter = "adapter"
    merged = "merged"
    int8 = "int8"
    int4 = "int4"
    gguf = "gguf"


TOLERANCES = {
    Format.hf: 0.0,
    # Merged weights are rounded to the model's dtype, base and adapter are not.
    Format.adapter: 1e-3,
    Format.merged: 1e-3,
    Format.int8: 0.02,
    Format.int4: 0.3,
    Format.gguf: 0.01,
}
"Largest allowed KL from the original, in nats per token, mean over the probes."


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig(StageConfig):
    model: str
    "The model to export: model/name@version or a local folder."
    formats: tuple[Format, ...] = (Format.hf,)
    "Formats to write, one folder each."
    int4_group: int = 128
    "Weights of a row that share a scale in int4: smaller groups are more exact and take more space."
    gguf_type: GgufType = GgufType.float16
    "Type of the matrices in the GGUF file; vectors are float32."
    tolerances: dict[str, float] = field(default_factory=dict)
    "Nats per token by format, instead of the defaults."

    def __post_init__(self) -> None:
        if not self.formats:
            raise ConfigError(f"formats is empty; name some of {', '.join(Format)}")
        if len(set(self.formats)) < len(self.formats):
            raise ConfigError(f"formats names one twice: {', '.join(self.formats)}; name each once")
        if self.int4_group not in INT4_GROUPS:
            raise ConfigError(f"int4_group must be one of {', '.join(map(str, INT4_GROUPS))}, got {self.int4_group}")
        for name, bound in self.tolerances.items():
            if name not in self.formats or not bound >= 0:
                raise ConfigError(
                    f"tolerances.{name} must be >= 0 and name one of formats ({', '.join(self.formats)}), got {bound}"
                )

    def tolerance(self, form: Format) -> float:
        return self.tolerances.get(form, TOLERANCES[form])

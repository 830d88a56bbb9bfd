"""What every config shares: frozen, strict, and each field's meaning stands beneath it (it is the --help text too)."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings of one recipe or command. An unknown key is an error, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True)

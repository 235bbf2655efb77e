"""What all parts of a recipe's schema are made of: closed models, and unions told apart by their form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field


class Strict(BaseModel):
    """Closed, immutable, no silent conversion between types; infinities and NaN are not numbers here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Text = Annotated[str, Field(min_length=1)]


def one_of(**forms: str) -> Discriminator:
    """Chooses a union's member by `_form`, so that a mistake is judged by the form its author meant; see problems.py."""
    return Discriminator(
        lambda value: _form(value, forms), custom_error_type="form", custom_error_message="|".join(forms.values())
    )


def _form(value: Any, forms: dict[str, str]) -> str | None:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        named = [form for form in forms if form in value]
        form = named[0] if named else "options"
    elif isinstance(value, list):
        form = "filters" if any(isinstance(item, dict | BaseModel) for item in value) else "gradient"
        form = form if form in forms else "values"
    elif isinstance(value, bool):
        form = "scalar"
    elif isinstance(value, int | float):
        form = "number" if "number" in forms else "scalar"
    elif isinstance(value, str):
        form = "name" if "name" in forms else "scalar"
    else:
        return None
    return f"<{form}>" if form in forms else None

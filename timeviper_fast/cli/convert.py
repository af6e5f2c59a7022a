"""`timeviper-fast convert`: other projects' checkpoints to one directory of our format."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from timeviper_fast.cli.app import DtypeName, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.errors import fail

__all__ = ["convert"]

_VISION, _ARCH = "siglip-vit-so400m-384px", "tome_mlp-16"


def convert(
    output: Annotated[str, typer.Argument(help="Directory to write.", callback=named)],
    model: Annotated[
        str | None,
        typer.Option(help="A whole model that ask loads, as VideoChat-Flash's.", callback=named),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(help="Hugging Face directory of the LLM, with tokenizer.", callback=named),
    ] = None,
    vlm: Annotated[
        str | None, typer.Option(help="Upstream's flat state dict of the VLM.", callback=named)
    ] = None,
    vision_weights: Annotated[
        str | None,
        typer.Option(help="Vision encoder's file; SigLIP: timm or HF keys.", callback=named),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(
            help="Upstream's id of the vision backbone, or a SigLIP directory. "
            f"Default: {_VISION}.",
            callback=named,
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help=f"Projector, as upstream writes it; default: {_ARCH}."),
    ] = None,
    pdrop: Annotated[
        str | None, typer.Option(help="Stages, as uni_7_0.5-attn_39_0.1; default: the config's.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(help="With --pdrop: CrossAttention, or no_merge; default: CrossAttention."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="nano_base or qwen2; default: that of the LLM.")
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="Of the weights written.")] = "bfloat16",
    overwrite: Annotated[
        bool, typer.Option(help="Replace the model in an existing directory.")
    ] = False,
) -> None:
    """Turn upstream's parts, or a whole model, into one directory that `ask` loads."""
    with importing():
        from timeviper_fast.checkpoint.files import local_directory
        from timeviper_fast.checkpoint.load import load_tokenizer
        from timeviper_fast.checkpoint.save import free_target
        from timeviper_fast.checkpoint.upstream import load_upstream, upstream_config
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.timeviper import TimeViper
    parts = {"vlm": vlm, "vision_weights": vision_weights, "pdrop": pdrop, "merge": merge}
    parts |= {"llm": llm, "template": template, "vision": vision, "arch": arch}
    if model is not None:
        for name, value in parts.items():
            if value is not None:
                fail("convert", name, "be left out with a whole model (--model)", value)
    elif llm is None:
        fail("convert", "llm", "be given, or --model for a whole model", llm)
    # fail before gigabytes are read
    free_target(output, overwrite)
    with progress_bars(err) as progress:
        read = partial(progress, "read")
        if llm is None:
            whole = TimeViper.from_pretrained(str(model), device="cpu", dtype=dtype, progress=read)
        else:
            config = upstream_config(
                llm,
                vision=vision or _VISION,
                arch=arch or _ARCH,
                pdrop=pdrop,
                merge=merge,
                template=template,
            )
            whole = load_upstream(
                TimeViper,
                config,
                llm_dir=llm,
                vision_file=vision_weights,
                vlm_file=vlm,
                dtype=dtype,
                progress=read,
            )
            whole.tokenizer = load_tokenizer(local_directory(llm))
        whole.save_pretrained(output, overwrite=overwrite, progress=partial(progress, "written"))
    say(err, f"wrote {output}")

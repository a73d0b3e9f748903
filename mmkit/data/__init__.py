"""Sources of samples, their mixing and their order."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "captions": "mmkit.data.captions:Captions",
    "conversations": "mmkit.data.conversations:Conversations",
    "shapes": "mmkit.data.shapes:Shapes",
    "text": "mmkit.data.text:TextFile",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("source", name, target)

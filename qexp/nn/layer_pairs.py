"""Which layer feeds which, through operations that leave channels apart."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from qexp.nn.channels import as_layer, as_norm, num_inputs, num_outputs
from qexp.nn.connectivity import PASS_CHANNELS, RELU_LIKE, ChannelClip, Connectivity, source_of


@dataclass(frozen=True)
class LayerPair:
    """A layer, and the layer or batch norm that its input can be followed back to.

    Args:
        source: module name of that layer or batch norm.
        target: module name of the layer that reads it.
        activation: between the two: `none`, `relu`, `relu6`, `clip` (a `ChannelClip`) or `prelu`.
        activation_module: module name of the activation; None where there is none, or where it is a function.
        features: of the target's inputs for each channel of the source: 1, or more behind a flatten.
        exclusive: nothing else reads the values between them, and neither module is called twice or shares its parameters.
        max_pooled: there is a max pooling between them.
    """

    source: str
    target: str
    activation: str
    activation_module: str | None
    features: int
    exclusive: bool
    max_pooled: bool


def find_layer_pairs(model: nn.Module) -> tuple[LayerPair, ...]:
    """Every layer whose input can be followed back to one other layer or batch norm, in order of execution.

    Raises:
        UserError: as for `Connectivity`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    >>> [(pair.source, pair.target, pair.activation, pair.features) for pair in find_layer_pairs(net)]
    [('0', '3', 'relu', 4)]
    """
    connectivity = Connectivity(model)
    pairs = [_pair_of(connectivity, node) for node in connectivity.nodes if connectivity.kind(node) == "layer"]
    return tuple(pair for pair in pairs if pair is not None)


def _pair_of(connectivity: Connectivity, target: fx.Node) -> LayerPair | None:
    """The pair of a layer; None where its input comes from no layer or norm, or where channels are mixed on the way."""
    between, node = [], source_of(target)
    while connectivity.kind(node) in PASS_CHANNELS:
        between.append(node)
        node = source_of(node)
    if connectivity.kind(node) not in ("layer", "norm"):
        return None
    kinds = [connectivity.kind(step) for step in between]
    flat = "flatten" in kinds
    activations = [step for step in between if connectivity.kind(step) in RELU_LIKE]
    source, reader = connectivity.module(node), as_layer(connectivity.module(target))
    spatial = type(source) is not nn.Linear and type(source) is not nn.BatchNorm1d
    channels = as_norm(source).num_features if connectivity.kind(node) == "norm" else num_outputs(as_layer(source))
    mixes = isinstance(reader, nn.Linear) and spatial != flat
    if mixes or len(activations) > 1 or num_inputs(reader) % channels or (not flat and num_inputs(reader) != channels):
        return None
    activation = connectivity.kind(activations[0]) if activations else "none"
    if flat and activation not in ("none", "relu"):  # a cap or slope for each channel, but no channels
        return None
    read_once = all(len(connectivity.readers(step)) == 1 for step in (node, *between))
    exclusive = read_once and connectivity.single(node) and connectivity.single(target)
    module = str(activations[0].target) if activations and activations[0].op == "call_module" else None
    if module is not None and activation != "relu" and not connectivity.single(activations[0]):
        exclusive = False
    return LayerPair(
        source=str(node.target),
        target=str(target.target),
        activation=activation,
        activation_module=module,
        features=num_inputs(reader) // channels,
        exclusive=exclusive,
        max_pooled="max_pool" in kinds,
    )


def activations_after(model: nn.Module) -> dict[str, str]:
    """Layer -> the activation that alone reads its output (`relu`, `relu6`, `clip`, `prelu`); layers without one are left out."""
    connectivity, activations = Connectivity(model), {}
    for node in connectivity.nodes:
        if connectivity.kind(node) == "layer":
            readers = connectivity.readers(node)
            while len(readers) == 1 and connectivity.kind(readers[0]) == "identity":
                readers = connectivity.readers(readers[0])
            if len(readers) == 1 and connectivity.kind(readers[0]) in RELU_LIKE:
                activations[str(node.target)] = connectivity.kind(readers[0])
    return activations


def clip_of(network: nn.Module, pair: LayerPair) -> ChannelClip:
    """The `ChannelClip` between the layers of a pair that has one."""
    assert pair.activation_module is not None
    clip = network.get_submodule(pair.activation_module)
    assert isinstance(clip, ChannelClip)
    return clip

"""Gradients of clients: one, written to be read (`one_client`), and all at once (`ClientGradients`)."""

from fedsim.gradients.batched import ClientGradients as ClientGradients
from fedsim.gradients.clip import Clip as Clip
from fedsim.gradients.oracles import hvps as hvps
from fedsim.gradients.oracles import losses as losses
from fedsim.gradients.oracles import one_hvp as one_hvp
from fedsim.gradients.oracles import one_loss as one_loss
from fedsim.gradients.reference import one_client as one_client
from fedsim.gradients.reference import require_certain as require_certain

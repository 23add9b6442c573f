"""Gradients of clients: one, written to be read (`one_client`), and all at once (`ClientGradients`)."""

from fedsim.gradients.batched import ClientGradients as ClientGradients
from fedsim.gradients.clip import Clip as Clip
from fedsim.gradients.reference import one_client as one_client
from fedsim.gradients.reference import require_certain as require_certain

"""Which cluster manager a master URL means, and where the driver runs."""

from __future__ import annotations

import re
from enum import Enum

from fatwood.errors import OptionError

__all__ = ["Kind", "cluster_of"]


class Kind(Enum):
    """A cluster manager, and for YARN and Kubernetes where the driver runs."""

    LOCAL = "local"
    STANDALONE = "standalone"
    YARN_CLIENT = "yarn client"
    YARN_CLUSTER = "yarn cluster"
    K8S_CLIENT = "k8s client"
    K8S_CLUSTER = "k8s cluster"

    @property
    def yarn(self) -> bool:
        """Whether YARN starts the executors."""
        return self in (Kind.YARN_CLIENT, Kind.YARN_CLUSTER)

    @property
    def k8s(self) -> bool:
        """Whether Kubernetes starts the executors."""
        return self in (Kind.K8S_CLIENT, Kind.K8S_CLUSTER)

    @property
    def driver_in_cluster(self) -> bool:
        """Whether the driver runs in a container of the cluster, and not in the process that submits."""
        return self in (Kind.YARN_CLUSTER, Kind.K8S_CLUSTER)


def cluster_of(master: str, deploy_mode: str | None) -> Kind:
    """The kind of cluster behind a master URL.

    Args:
        master: ``local``, ``local[N]``, ``local[*]``, ``spark://HOST:PORT``, ``yarn`` or ``k8s://URL``.
        deploy_mode: ``client``, ``cluster``, or None for the usual one: ``cluster`` on Kubernetes, else ``client``.

    Raises:
        OptionError: There is no such master or deploy mode, or Spark does not know the two together.
    """
    if deploy_mode not in (None, "client", "cluster"):
        text = f"--deploy-mode: expected client or cluster, received {deploy_mode!r}"
        raise OptionError(text)
    if re.fullmatch(r"local(\[(\d+|\*)\])?", master) or re.fullmatch(r"spark://[^/\s]+:\d+", master):
        kind = Kind.LOCAL if master.startswith("local") else Kind.STANDALONE
        if deploy_mode == "cluster":
            text = f"--deploy-mode: expected client with --master {master}, received cluster"
            hint = "Spark runs Python drivers in the cluster on YARN and Kubernetes only; leave --deploy-mode out"
            raise OptionError(text, hint=hint)
        return kind
    if master == "yarn":
        return Kind.YARN_CLUSTER if deploy_mode == "cluster" else Kind.YARN_CLIENT
    if re.fullmatch(r"k8s://\S+", master):
        return Kind.K8S_CLIENT if deploy_mode == "client" else Kind.K8S_CLUSTER
    text = f"--master: expected local, local[N], local[*], spark://HOST:PORT, yarn or k8s://URL, received {master!r}"
    raise OptionError(text)

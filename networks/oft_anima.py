"""--network_module networks.oft_anima: OFT and BOFT on Anima's Linears, and differences of its norms."""

from __future__ import annotations

from networks._anima_adapter_common import AnimaNetworks

_NETWORKS = AnimaNetworks("OFT")

create_network = _NETWORKS.create_network
create_network_from_weights = _NETWORKS.create_network_from_weights
check_network_args = _NETWORKS.check_network_args

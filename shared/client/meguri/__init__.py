"""The Python SDK of meguri, for upstreams and operators: publish data, apply specs, ask what became of them."""

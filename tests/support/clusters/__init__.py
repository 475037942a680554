"""Clusters on this machine: Ray on loopback, hosts in network namespaces, Slurm; and what Kubernetes is given."""

"""What several tests use: small real models and files, runs, processes, hubs on loopback."""

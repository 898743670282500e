"""Device meshes, sharding rules and arrays over many devices."""

"""What a run is asked for: configurations, their presets, the flags of programs, and how a run is carried out."""

"""What training, export and serving must do identically: media, faces, crop, scores, metrics. No torch."""

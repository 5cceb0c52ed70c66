"""What `experiments.examine` alone needs: networks that users bring, their page, and ROAR with networks of ours."""

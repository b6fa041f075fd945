"""Run a recipe's stages in order and skip those whose artifact exists."""

from _checkout import ROOT, run_job

from lisan.recipes.run_pipeline import PipelineConfig, run_pipeline

if __name__ == "__main__":
    run_job(__file__, PipelineConfig, lambda config: run_pipeline(config, ROOT / "conf"))

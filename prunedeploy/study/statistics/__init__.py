"""What a study's rows say: `cells` groups them, `contrasts` compares by `anova`, `claims` answers the paper's."""

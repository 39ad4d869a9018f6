from meguri_inference.memory import give_back

if __name__ == "__main__":
    give_back()
    # What this imports takes memory and starts threads.
    from meguri_inference.app import build

    build().serve()
